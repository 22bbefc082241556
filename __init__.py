"""Tutti: all your GPUs play one image.

This folder is at once a ComfyUI custom-node pack and the Python package ``tutti``. Importing it imports nothing else: ComfyUI asks
for ``comfy_entrypoint`` when it wants the nodes, and only then is :mod:`comfy_nodes` loaded (PEP 562).
"""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./comfy_nodes/web"

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "comfy_entrypoint":
        from .comfy_nodes.extension import comfy_entrypoint

        return comfy_entrypoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
