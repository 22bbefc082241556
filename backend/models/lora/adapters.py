"""The arithmetic of adapters: what each kind makes of a weight ``W``, in float32, with ComfyUI's order of operations.

    lora    W + s (alpha / r) up down                              Hu et al. 2021, equation 3
    loha    W + s (alpha / r) (w1_a w1_b) * (w2_a w2_b)            Hyeon-Woo et al. 2022 (FedPara), proposition 1
    lokr    W + s (alpha / r) kron(w1, w2)                         Yeh et al. 2024 (LyCORIS), section 3
    diff    W + s diff
    set     value
    DoRA    any of the first three with a dora_scale: the magnitude of every row (or column) is set to it; Liu et al. 2024, equation 5

``s`` is the strength; without an alpha its factor is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ...errors import BadCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What one file says about one weight."""

    kind: str
    """``lora``, ``loha``, ``lokr``, ``diff`` or ``set``."""
    tensors: Mapping[str, Tensor]
    """By part: ``up``, ``down``, ``mid``, ``w1_a``, ... and ``dora_scale``."""
    alpha: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """An adapter, where it goes, and how strongly."""

    weight: str
    """A tensor of the checkpoint, by its original name."""
    adapter: Adapter
    rows: tuple[int, int] | None = None
    """Of a fused weight: the rows that the adapter is for."""
    swap_halves: bool = False
    """Whether the adapter is for the weight with its halves exchanged."""
    strength: float = 1.0


def patch_weight(weight: Tensor, patches: Iterable[Patch]) -> Tensor:
    """Apply all patches, in order, to ``weight`` (float32, contiguous) itself, and return it.

    Raises:
        BadCheckpoint: an adapter is of another shape than the weight.
    """
    for patch in patches:
        if patch.rows is not None and not patch.rows[0] < patch.rows[1] <= len(weight):
            raise BadCheckpoint(
                f"Choose a LoRA for this model: it changes the rows {patch.rows[0]} to {patch.rows[1]} of {patch.weight}, which has {len(weight)}."
            )
        part = weight if patch.rows is None else weight[patch.rows[0] : patch.rows[1]]
        try:
            _check_sizes(part, patch)
            _apply(part, patch)
        except (RuntimeError, ValueError, IndexError, KeyError, ZeroDivisionError) as error:
            raise BadCheckpoint(
                f"Download the LoRA again: its tensors for {patch.weight} do not fit one another."
            ) from error
    return weight


def _apply(part: Tensor, patch: Patch) -> None:
    adapter = patch.adapter
    if adapter.kind == "set":
        part.copy_(adapter.tensors["value"].reshape(part.shape))
        return
    has_magnitude = "dora_scale" in adapter.tensors and adapter.kind in _WITH_MAGNITUDE
    if adapter.kind == "lora" and not (has_magnitude or patch.swap_halves or "mid" in adapter.tensors):
        _add_product(part, patch)
        return
    change = _CHANGES[adapter.kind](adapter).reshape(part.shape)
    if patch.swap_halves:
        change = torch.cat(change.chunk(2)[::-1])
    if has_magnitude:
        part.copy_(_with_magnitude(part, change, adapter.tensors["dora_scale"].to(part), patch.strength))
    else:
        part.add_(change, alpha=patch.strength)


def _add_product(part: Tensor, patch: Patch) -> None:
    """The usual LoRA, in one pass over the weight."""
    up, down = (patch.adapter.tensors[name].float().flatten(1) for name in ("up", "down"))
    scale = 1.0 if patch.adapter.alpha is None else patch.adapter.alpha / len(down)
    part.view(len(up), -1).addmm_(up, down, alpha=patch.strength * scale)


def _check_sizes(part: Tensor, patch: Patch) -> None:
    """Before anything is multiplied: small matrices may have a product that no memory holds."""
    if any(tensor.is_complex() for tensor in patch.adapter.tensors.values()):
        raise ValueError("complex numbers")
    size, largest = _SIZES[patch.adapter.kind]({name: tensor.shape for name, tensor in patch.adapter.tensors.items()})
    if size != part.numel():
        raise BadCheckpoint(
            f"Choose a LoRA for this model: it changes {patch.weight} by a tensor of {size} numbers, and the weight has {part.numel()}."
        )
    if largest > _LARGEST * part.numel():
        raise ValueError("a core of a rank beyond all use")


def _with_magnitude(weight: Tensor, change: Tensor, scale: Tensor, strength: float) -> Tensor:
    """Rows are measured before the change and columns after it: what ComfyUI does."""
    moved = weight + change
    if scale.shape[0] == moved.shape[0]:
        norm = weight.flatten(1).norm(dim=1).reshape(-1, *(1,) * (weight.ndim - 1))
    else:
        norm = moved.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *(1,) * (weight.ndim - 2))
    moved = moved * (scale / (norm + torch.finfo(weight.dtype).eps))
    out: Tensor = weight + strength * (moved - weight)
    return out.reshape(weight.shape)


def _lora(adapter: Adapter) -> Tensor:
    up, down = (adapter.tensors[part].float() for part in ("up", "down"))
    rank = down.shape[0]
    if "mid" in adapter.tensors:
        # A convolution between the two: [r, r, h, w] joins [r, in, 1, 1].
        down = torch.einsum("ijhw,jk->ikhw", adapter.tensors["mid"].float(), down.flatten(1))
    return _scaled(up.flatten(1) @ down.flatten(1), adapter, rank)


def _loha(adapter: Adapter) -> Tensor:
    part = {name: tensor.float() for name, tensor in adapter.tensors.items()}
    one, two = (_tucker(part, f"t{n}", f"w{n}_a", f"w{n}_b") for n in (1, 2))
    return _scaled(one * two, adapter, part["w1_b"].shape[0])


def _lokr(adapter: Adapter) -> Tensor:
    part = {name: tensor.float() for name, tensor in adapter.tensors.items()}
    one = part["w1"] if "w1" in part else part["w1_a"] @ part["w1_b"]
    two = part["w2"] if "w2" in part else _tucker(part, "t2", "w2_a", "w2_b")
    if two.ndim == 4:
        one = one[:, :, None, None]
    rank = part["w2_b"].shape[0] if "w2" not in part else part["w1_b"].shape[0] if "w1" not in part else None
    return _scaled(torch.kron(one, two.contiguous()), adapter, rank)


def _tucker(part: Mapping[str, Tensor], core: str, a: str, b: str) -> Tensor:
    """``a b``, or with a core of a convolution (CP decomposition) the tensor that the three stand for."""
    if core not in part:
        return part[a] @ part[b]
    return torch.einsum("ijhw,jr,ip->prhw", part[core], part[b], part[a])


def _scaled(change: Tensor, adapter: Adapter, rank: int | None) -> Tensor:
    return change if adapter.alpha is None or rank is None else change * (adapter.alpha / rank)


_CHANGES: Final[Mapping[str, Callable[[Adapter], Tensor]]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "diff": lambda adapter: adapter.tensors["value"].float(),
}
_WITH_MAGNITUDE: Final = frozenset({"lora", "loha", "lokr"})
"""Kinds that may be DoRA: a dora_scale beside a plain difference means nothing, to ComfyUI too."""
_LARGEST: Final = 64
"""Most numbers on the way, for each number of the weight."""
Shapes = Mapping[str, torch.Size]


def _lora_size(shapes: Shapes) -> tuple[int, int]:
    """(Numbers of the change, most numbers of a tensor on the way), as the others."""
    columns = shapes["down"][1:].numel()
    if "mid" in shapes:
        columns *= shapes["mid"][2:].numel()
    return shapes["up"][0] * columns, shapes["down"][0] * columns


def _product_size(shapes: Shapes, core: str, a: str, b: str) -> tuple[int, int]:
    if core not in shapes:
        return (shapes[a][0] * shapes[b][1],) * 2
    area = shapes[core][2:].numel()
    return shapes[a][1] * shapes[b][1] * area, shapes[core][0] * shapes[b][1] * area


def _loha_size(shapes: Shapes) -> tuple[int, int]:
    (one, on_the_way), (two, likewise) = (_product_size(shapes, f"t{n}", f"w{n}_a", f"w{n}_b") for n in (1, 2))
    return one, max(on_the_way, two, likewise)


def _lokr_size(shapes: Shapes) -> tuple[int, int]:
    one = (shapes["w1"].numel(),) * 2 if "w1" in shapes else _product_size(shapes, "", "w1_a", "w1_b")
    two = (shapes["w2"].numel(),) * 2 if "w2" in shapes else _product_size(shapes, "t2", "w2_a", "w2_b")
    return one[0] * two[0], max(one[1], two[1])


_SIZES: Final[Mapping[str, Callable[[Shapes], tuple[int, int]]]] = {
    "lora": _lora_size,
    "loha": _loha_size,
    "lokr": _lokr_size,
    "diff": lambda shapes: (shapes["value"].numel(), 0),
    "set": lambda shapes: (shapes["value"].numel(), 0),
}
