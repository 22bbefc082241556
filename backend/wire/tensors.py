"""Tensors as the wire sees them: a name, a dtype, a shape and dense bytes. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .dtypes import ITEM_BYTES
from .limits import DIM_SIZE, MESSAGE_BYTES, NAME_LENGTH, TENSOR_BYTES, TENSOR_DIMS, TENSOR_FRAMES
from .schema import SchemaError, bounded

WireDtype = Literal["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a tensor frame holds."""

    name: str = field(metadata=bounded(length=NAME_LENGTH, pattern=r"[A-Za-z0-9_.\-]+"))
    """Its name within the message, such as ``branch.0.context``."""
    dtype: WireDtype
    """Element type."""
    shape: tuple[int, ...] = field(metadata=bounded(low=0, high=DIM_SIZE, length=TENSOR_DIMS))
    """Sizes, outermost first; row-major, dense."""

    @property
    def size_bytes(self) -> int:
        """Length of the frame."""
        size = ITEM_BYTES[self.dtype]
        for dim in self.shape:
            size *= dim  # Python integers: no overflow, however hostile the shape
        return size


@dataclass(frozen=True, slots=True, kw_only=True)
class WireTensor:
    """Dense bytes with their dtype and shape. ``data`` is anything with the buffer protocol, never copied by the codec."""

    dtype: WireDtype
    shape: tuple[int, ...]
    data: Any

    def spec(self, name: str) -> TensorSpec:
        """The description that stands in the header."""
        return TensorSpec(name=name, dtype=self.dtype, shape=self.shape)


Tensors = Mapping[str, WireTensor]


def check_specs(specs: tuple[TensorSpec, ...]) -> None:
    """Check a message's tensors against the limits, from the header alone.

    Raises:
        SchemaError: too many tensors, a name twice, or more bytes than a tensor or a message may have.
    """
    if len(specs) > TENSOR_FRAMES:
        raise SchemaError(f"{len(specs)} tensors, at most {TENSOR_FRAMES} are allowed")
    names = {spec.name for spec in specs}
    if len(names) != len(specs):
        raise SchemaError("two tensors have the same name")
    for spec in specs:
        if spec.size_bytes > TENSOR_BYTES:
            raise SchemaError(f"tensor {spec.name}: {spec.size_bytes} bytes, at most {TENSOR_BYTES} are allowed")
    total = sum(spec.size_bytes for spec in specs)
    if total > MESSAGE_BYTES:
        raise SchemaError(f"{total} bytes of tensors, at most {MESSAGE_BYTES} are allowed")
