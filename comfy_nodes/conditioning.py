"""Processed conditioning (what ComfyUI's own ``extra_conds`` made) to wire conditioning. Unknown keys are named, never dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..backend.errors import UnsupportedInput
from ..backend.wire.schema import Scalar
from ..backend.wire.tensors import WireTensor
from .families import Family
from .tensors import to_wire


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """What one branch tells the network: named tensors whose first dimension is the batch, and plain options."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    options: dict[str, Scalar] = field(default_factory=dict)

    def same_as(self, other: Conditioning) -> bool:
        """Whether both say exactly the same."""
        return (
            self.options == other.options
            and self.tensors.keys() == other.tensors.keys()
            and all(_same(tensor, other.tensors[name]) for name, tensor in self.tensors.items())
        )

    def copy(self) -> Conditioning:
        """The same in memory of its own: nobody can change it behind our back."""
        return Conditioning(
            tensors={name: tensor.clone() for name, tensor in self.tensors.items()}, options=dict(self.options)
        )

    def to_wire(self) -> dict[str, WireTensor]:
        """The tensors, ready to send."""
        return {name: to_wire(tensor) for name, tensor in self.tensors.items()}


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def unknown_keys(family: Family, keys: Mapping[str, Any]) -> list[str]:
    """The conditioning keys that `family` has no name for and that say something."""
    known = {*family.tensors, *family.lists, *family.options, *family.consumed}
    return sorted(key for key, value in keys.items() if key not in known and not _says_nothing(family, key, value))


def _says_nothing(family: Family, key: str, value: Any) -> bool:
    """Also of a value in a ``comfy.conds`` object, as the gate has it."""
    value = getattr(value, "cond", value)
    if value is None or key not in family.idle:
        return value is None
    return all(entry.get(name) == idle for entry in value for name, idle in family.idle[key].items())


def from_values(family: Family, values: Mapping[str, Any], dtype: torch.dtype) -> Conditioning:
    """Wire conditioning of `values`: ``model_conds`` key -> tensor, list of tensors or plain value; None says nothing.

    Floating-point tensors are cast to `dtype`, the compute dtype, as ComfyUI's ``_apply_model`` does before the network sees them.

    Raises:
        UnsupportedInput: a key that this family has no name for.
    """
    unknown = unknown_keys(family, values)
    if unknown:
        raise UnsupportedInput(
            f"Remove what adds {', '.join(unknown)} to the conditioning: Tutti cannot honour it for {family.name} models, "
            "and leaving it out would change the picture."
        )
    tensors: dict[str, torch.Tensor] = {}
    options: dict[str, Scalar] = {}
    for key, value in values.items():
        if key in family.consumed or _says_nothing(family, key, value):
            continue
        if key in family.tensors:
            tensors[family.tensors[key]] = _cast(value, dtype)
        elif key in family.lists:
            tensors |= {f"{family.lists[key]}.{index}": _cast(item, dtype) for index, item in enumerate(value)}
        else:
            options[key] = value
    return Conditioning(tensors=tensors, options=options)


def from_model_conds(family: Family, model_conds: Mapping[str, Any], dtype: torch.dtype) -> Conditioning:
    """Wire conditioning of one branch of a whole loop, from the ``comfy.conds`` objects of its ``model_conds``."""
    return from_values(family, {key: entry.cond for key, entry in model_conds.items()}, dtype)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def split(conditioning: Conditioning, parts: int) -> list[Conditioning]:
    """The branches that ComfyUI stacked along the batch, one by one. Every tensor's batch is a multiple of `parts`."""
    if parts == 1:
        return [conditioning]
    pieces = {name: tensor.chunk(parts) for name, tensor in conditioning.tensors.items()}
    return [
        Conditioning(tensors={name: chunks[index] for name, chunks in pieces.items()}, options=conditioning.options)
        for index in range(parts)
    ]
