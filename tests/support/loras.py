"""LoRA files in the formats that trainers write, for a small FLUX.1: random numbers, real names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from tutti.backend.models.families.flux import Flux, FluxGeometry
from tutti.backend.models.family import Family

Tensors = dict[str, Tensor]
RANK: Final = 4


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator) / shape[-1] ** 0.5


def shapes(geometry: Any, *, original: bool, family: Family[Any] | None = None) -> dict[str, tuple[int, int]]:
    """Matrices of a network (a FLUX.1's, if no family is given) by the original or diffusers' names: layer -> (out, in)."""
    family = family or Flux()
    original = original and bool(family.original_marks)
    found: dict[str, tuple[int, int]] = {}
    for name, tensor in family.empty_network(geometry).state_dict().items():
        if tensor.ndim == 2 and name.endswith(".weight"):
            layer = (family.key_map(geometry).source(name).name if original else name).removesuffix(".weight")
            rows = found.get(layer, (0, 0))[0] if original else 0
            found[layer] = (rows + tensor.shape[0], tensor.shape[1])
    return found


def norm_diffs(geometry: Any, family: Family[Any] | None = None) -> Tensors:
    """A difference for every norm of a query or a key, which published files often call otherwise than ComfyUI does."""
    family = family or Flux()
    generator = torch.Generator().manual_seed(5)
    found: Tensors = {}
    for name, tensor in family.empty_network(geometry).state_dict().items():
        source = family.key_map(geometry).source(name).name if family.original_marks else name
        if tensor.ndim == 1 and source.endswith("_norm.weight"):
            diff = 0.1 * torch.randn(tensor.shape, generator=generator)
            found[f"diffusion_model.{source.removesuffix('.weight')}.diff"] = diff
    return found


def lora(
    layers: Mapping[str, tuple[int, int]], name: Callable[[str], str], up: str, down: str, *, alpha: float | None
) -> Tensors:
    """Two factors for every layer."""
    generator = torch.Generator().manual_seed(3)
    tensors: Tensors = {}
    for layer, (rows, columns) in layers.items():
        tensors[f"{name(layer)}.{down}"] = _random(generator, RANK, columns)
        tensors[f"{name(layer)}.{up}"] = _random(generator, rows, RANK)
        if alpha is not None:
            tensors[f"{name(layer)}.alpha"] = torch.tensor(alpha)
    return tensors


def formats(geometry: FluxGeometry) -> dict[str, Tensors]:
    """One file of every format."""
    original, ours = shapes(geometry, original=True), shapes(geometry, original=False)
    blocks = {layer: shape for layer, shape in original.items() if "blocks." in layer}
    split = {layer: shape for layer, shape in ours.items() if "blocks." in layer and "attn" in layer}
    generator = torch.Generator().manual_seed(4)

    def kohya(layer: str) -> str:
        return f"lora_unet_{layer.replace('.', '_')}"

    loha: Tensors = {}
    lokr: Tensors = {}
    dora: Tensors = {}
    full: Tensors = {}
    for layer, (rows, columns) in blocks.items():
        for part, shape in {
            "w1_a": (rows, RANK),
            "w1_b": (RANK, columns),
            "w2_a": (rows, RANK),
            "w2_b": (RANK, columns),
        }.items():
            loha[f"{kohya(layer)}.hada_{part}"] = _random(generator, *shape)
        loha[f"{kohya(layer)}.alpha"] = torch.tensor(2.0)
        lokr[f"{kohya(layer)}.lokr_w1"] = _random(generator, 4, 4) / 4
        lokr[f"{kohya(layer)}.lokr_w2_a"] = _random(generator, rows // 4, RANK)
        lokr[f"{kohya(layer)}.lokr_w2_b"] = _random(generator, RANK, columns // 4)
        lokr[f"{kohya(layer)}.alpha"] = torch.tensor(3.0)
        dora[f"{kohya(layer)}.dora_scale"] = 1 + 0.1 * torch.rand(rows, 1, generator=generator)
        full[f"{kohya(layer)}.diff"] = 0.1 * _random(generator, rows, columns)
        full[f"{kohya(layer)}.diff_b"] = 0.1 * torch.randn(rows, generator=generator)
    return {
        "kohya": lora(original, kohya, "lora_up.weight", "lora_down.weight", alpha=2.0),
        "BFL names": lora(
            blocks, lambda layer: f"diffusion_model.{layer}", "lora_B.weight", "lora_A.weight", alpha=None
        ),
        "BFL names (up and down)": lora(
            blocks, lambda layer: f"diffusion_model.{layer}", "lora_up.weight", "lora_down.weight", alpha=8.0
        ),
        "diffusers": lora(split, lambda layer: f"transformer.{layer}", "lora_B.weight", "lora_A.weight", alpha=None),
        "OneTrainer": lora(
            split,
            lambda layer: f"lora_transformer_{layer.replace('.', '_')}",
            "lora_up.weight",
            "lora_down.weight",
            alpha=1.0,
        ),
        "LoHa": loha,
        "LoKr": lokr,
        "DoRA": {**lora(blocks, kohya, "lora_up.weight", "lora_down.weight", alpha=2.0), **dora},
        "full difference": full,
    }
