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


def patched(weight: Tensor, patches: Iterable[Patch]) -> Tensor:
    """``weight`` (float32, not changed) after all patches, in order.

    Raises:
        BadCheckpoint: an adapter is of another shape than the weight.
    """
    out = weight.clone()
    for patch in patches:
        part = out if patch.rows is None else out[patch.rows[0] : patch.rows[1]]
        part.copy_(_after(part, patch))
    return out


def _after(weight: Tensor, patch: Patch) -> Tensor:
    adapter = patch.adapter
    if adapter.kind == "set":
        return _fitting(adapter.tensors["value"].to(weight), weight, patch)
    try:
        change = _CHANGES[adapter.kind](adapter)
    except (RuntimeError, ValueError, IndexError) as error:
        raise BadCheckpoint(
            f"Download the LoRA again: its tensors for {patch.weight} do not fit one another."
        ) from error
    change = _fitting(change, weight, patch)
    if patch.swap_halves:
        change = torch.cat(change.chunk(2)[::-1])
    if "dora_scale" in adapter.tensors:
        return _with_magnitude(weight, change, adapter.tensors["dora_scale"].to(weight), patch.strength)
    return weight + patch.strength * change


def _fitting(change: Tensor, weight: Tensor, patch: Patch) -> Tensor:
    if change.numel() != weight.numel():
        raise BadCheckpoint(
            f"Choose a LoRA for this model: it changes {patch.weight} by a tensor of {change.numel()} numbers, "
            f"and the weight has {weight.numel()}."
        )
    return change.reshape(weight.shape)


def _with_magnitude(weight: Tensor, change: Tensor, scale: Tensor, strength: float) -> Tensor:
    """Rows are measured before the change and columns after it: what ComfyUI does."""
    moved = weight + change
    if scale.shape[0] == moved.shape[0]:
        norm = weight.flatten(1).norm(dim=1).reshape(-1, *(1,) * (weight.ndim - 1))
    else:
        norm = moved.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *(1,) * (weight.ndim - 2))
    moved = moved * (scale / (norm + torch.finfo(weight.dtype).eps))
    out: Tensor = weight + strength * (moved - weight)
    return out


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
