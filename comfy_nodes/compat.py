"""Two shims that let one pack load on old and new ComfyUI.

A single keyword that an older ``io.Schema`` or input does not know makes ComfyUI drop every node of a pack. :func:`schema` leaves out the
schema fields that this ComfyUI lacks (they are conveniences); :func:`add_input` puts unknown input options where every version reads them.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io


def schema(**fields: Any) -> Any:
    """An ``io.Schema`` of the fields that this version of ComfyUI knows."""
    known = {f.name for f in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def add_input(kind: Any, name: str, **options: Any) -> Any:
    """An input of type `kind` (``io.Int``, ``io.Model``, ...).

    Options that this version's constructor lacks, such as ``advanced``, travel in ``extra_dict``: the page reads them there all the same.
    """
    known = inspect.signature(kind.Input.__init__).parameters
    made = kind.Input(name, **{key: value for key, value in options.items() if key in known})
    rest = {key: value for key, value in options.items() if key not in known}
    if rest:
        made.extra_dict = {**(made.extra_dict or {}), **rest}
    return made
