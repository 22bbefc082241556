"""Norms as ComfyUI computes them, in diffusers' networks."""

from __future__ import annotations

from torch import nn


def use_torchs_epsilon(network: nn.Module) -> None:
    """ComfyUI's query and key norms have torch's own epsilon for the dtype, where diffusers has 1e-6."""
    for module in network.modules():
        if isinstance(module, nn.RMSNorm):
            module.eps = None
