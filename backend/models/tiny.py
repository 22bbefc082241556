"""Small random checkpoints, for tests and benchmarks: real names, real head size, no trained weights.

Weights are scaled by their fan-in and norms lie near 1, so that activations keep a sane size through any depth and an error anywhere shows in
the output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from .families.flux import Flux, FluxGeometry
from .family import Family
from .keys import KeyMap

BIAS_SCALE = 0.05

Naming = Literal["original", "diffusers"]
G = TypeVar("G")


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
    """Write a FLUX.1 to ``path`` and return its geometry: head_dim 128, so that ComfyUI's own detection takes it unpatched.

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
    naming: Naming = "original" if format == "bfl" else "diffusers"
    write_tiny(
        path, Flux(), geometry, seed=seed, naming=naming, respell=norm_leaf == "scale", prefix=prefix, dtype=dtype
    )
    return geometry


def write_tiny(
    path: Path,
    family: Family[G],
    geometry: G,
    *,
    seed: int = 0,
    naming: Naming = "original",
    respell: bool = False,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint of any family. The same seed gives the same network in both namings.

    ``respell`` uses the other spelling of names that have two (see ``Family.spellings``).
    """
    tensors = random_weights(family, geometry, seed)
    if naming == "original" and family.original_marks:
        tensors = to_original(tensors, family.key_map(geometry), family.spellings if respell else {})
    named = {f"{prefix}{name}": tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(named, path, metadata=dict(metadata) if metadata else None)


def random_weights(family: Family[G], geometry: G, seed: int) -> dict[str, Tensor]:
    """Random parameters by their diffusers names, float32."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _random(name, tensor.shape, generator)
        for name, tensor in sorted(family.empty_network(geometry).state_dict().items())
    }


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1 and "norm" in name and name.endswith(".weight"):
        return 1 + 0.1 * noise
    return noise * (BIAS_SCALE if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:])))


def to_original(tensors: Mapping[str, Tensor], names: KeyMap, spellings: Mapping[str, str]) -> dict[str, Tensor]:
    """Parameters by their diffusers names -> by the original ones, fused: the key map read backwards."""
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in tensors.items():
        source = names.source(name)
        if source.swap_halves:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        parts.setdefault(source.name, []).append((source.rows[0] if source.rows else 0, tensor))
    fused = {
        name: torch.cat([tensor for _, tensor in sorted(pieces, key=lambda part: part[0])])
        if len(pieces) > 1
        else pieces[0][1]
        for name, pieces in parts.items()
    }
    return {_respelled(name, spellings): tensor for name, tensor in fused.items()}


def _respelled(name: str, spellings: Mapping[str, str]) -> str:
    for usual, other in spellings.items():
        if name.endswith(usual):
            return f"{name.removesuffix(usual)}{other}"
    return name
