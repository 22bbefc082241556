"""A small random FLUX.1 checkpoint, for tests and benchmarks: real names, real head size, no trained weights.

Weights are scaled by their fan-in and norms lie near 1, so that activations keep a sane size through any depth and an error anywhere shows in
the output. head_dim is 128 with rotary axes (16, 56, 56): ComfyUI's own detection loads such a file unpatched.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from .flux_keys import HEAD_DIM, FluxGeometry, bfl_source
from .flux_net import empty_network

BIAS_SCALE = 0.05


def write_tiny_flux(
    path: Path,
    *,
    hidden: int = 256,
    depth: int = 2,
    depth_single: int = 3,
    context_dim: int = 64,
    pooled_dim: int = 32,
    guidance: bool = True,
    in_channels: int = 16,
    seed: int = 0,
    format: Literal["bfl", "diffusers"] = "bfl",
    norm_leaf: Literal["scale", "weight"] = "scale",
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
) -> FluxGeometry:
    """Write the checkpoint to ``path`` and return its geometry. The same seed gives the same network in both formats.

    ``norm_leaf`` is the name that BFL files give the query and key norms: published ones ``scale``, ComfyUI's modules ``weight``.
    """
    geometry = FluxGeometry(
        hidden=hidden,
        depth=depth,
        depth_single=depth_single,
        in_channels=in_channels,
        out_channels=16,
        context_dim=context_dim,
        pooled_dim=pooled_dim,
        guidance=guidance,
    )
    tensors = random_weights(geometry, seed)
    if format == "bfl":
        tensors = to_bfl(tensors, hidden, norm_leaf)
    save_file({f"{prefix}{name}": tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, path)
    return geometry


def random_weights(geometry: FluxGeometry, seed: int) -> dict[str, Tensor]:
    """Random parameters by their diffusers names, float32."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _random(name, tensor.shape, generator)
        for name, tensor in sorted(empty_network(geometry).state_dict().items())
    }


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if shape == (HEAD_DIM,) and name.endswith(".weight"):
        return 1 + 0.1 * noise
    return noise * (BIAS_SCALE if len(shape) == 1 else 1 / math.sqrt(shape[1]))


def to_bfl(tensors: dict[str, Tensor], hidden: int, norm_leaf: str = "scale") -> dict[str, Tensor]:
    """Parameters by their diffusers names -> by BFL's, fused: :func:`bfl_source` read backwards."""
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in tensors.items():
        source = bfl_source(name, hidden)
        if source.swap_halves:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        parts.setdefault(source.name, []).append((source.rows[0] if source.rows else 0, tensor))

    fused = {
        name: torch.cat([tensor for _, tensor in sorted(pieces, key=lambda part: part[0])])
        for name, pieces in parts.items()
    }
    return {_named(name, norm_leaf): tensor for name, tensor in fused.items()}


def _named(name: str, norm_leaf: str) -> str:
    return name.removesuffix("weight") + norm_leaf if name.endswith("_norm.weight") else name
