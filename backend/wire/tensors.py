"""Tensors as the wire sees them: a name, a dtype, a shape and dense bytes. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cursor import UNREADABLE, Cursor
from .dtypes import ITEM_BYTES, WireDtype
from .limits import DIM_SIZE, MESSAGE_BYTES, NAME_LENGTH, TENSOR_BYTES, TENSOR_DIMS, TENSOR_FRAMES
from .schema import SchemaError, bounded, kinds_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a tensor frame holds."""

    name: str = field(metadata=bounded(length=NAME_LENGTH, pattern=r"[A-Za-z0-9_.\-]+"))
    """Its name within the message, such as ``branch.0.context``."""
    dtype: WireDtype
    """Element type."""
    shape: tuple[int, ...] = field(metadata=bounded(low=0, high=DIM_SIZE, items=TENSOR_DIMS))
    """Sizes, outermost first; row-major, dense."""

    @property
    def size_bytes(self) -> int:
        """Length of the frame. Python integers: no overflow, however hostile the shape."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class WireTensor:
    """Dense bytes with their dtype and shape. ``data`` is anything with the buffer protocol, never copied by the
    codec."""

    dtype: WireDtype
    shape: tuple[int, ...]
    data: Any

    def spec(self, name: str) -> TensorSpec:
        """The description that stands in the header."""
        return TensorSpec(name=name, dtype=self.dtype, shape=self.shape)


Tensors = Mapping[str, WireTensor]

_NAME, _DTYPE, _SHAPE = kinds_of(TensorSpec).values()


def flat_bytes(frame: Any) -> bytes | memoryview:
    """A buffer as flat bytes, without a copy: ``bytes`` as they are, anything else as a flat view of its memory.

    Raises:
        TypeError: not a buffer, or one that is not dense and row-major. A mistake on this side; no peer can cause it.
    """
    if type(frame) is bytes:
        return frame
    view = memoryview(frame)
    if view.ndim == 1 and view.format == "B" and view.c_contiguous:
        return view
    return view.cast("B") if view.nbytes else b""  # cast refuses views with a zero in their shape


def read_specs(cursor: Cursor) -> tuple[TensorSpec, ...]:
    """The tensor rows of a header, each ``[name, dtype, shape]``.

    Raises:
        SchemaError: a row is not legal, or the rows together break a limit (see :func:`check_specs`).
    """
    count = _check_count(cursor.array_length())
    specs: list[TensorSpec] = []
    try:
        for _ in range(count):
            if cursor.array_length() != 3:
                raise SchemaError("expected name, dtype and shape")
            name, dtype, shape = _NAME.read(cursor), _DTYPE.read(cursor), _SHAPE.read(cursor)
            specs.append(TensorSpec(name=name, dtype=dtype, shape=shape))
    except SchemaError as error:
        error.within(f"tensors[{len(specs)}]")
        raise
    except UNREADABLE as error:
        raise SchemaError(f"no name, dtype and shape ({type(error).__name__})", f"tensors[{len(specs)}]") from error
    check_specs(specs)
    return tuple(specs)


def write_specs(specs: Sequence[TensorSpec]) -> list[list[Any]]:
    """The inverse of :func:`read_specs`, with the same checks."""
    _check_count(len(specs))
    rows = [[_NAME.write(spec.name), _DTYPE.write(spec.dtype), _SHAPE.write(spec.shape)] for spec in specs]
    check_specs(specs)
    return rows


def check_specs(specs: Sequence[TensorSpec]) -> None:
    """Check the tensors of a message together, before anything is allocated for them.

    Raises:
        SchemaError: too many tensors, a name twice, or more bytes than a tensor or a message may have.
    """
    _check_count(len(specs))
    if len({spec.name for spec in specs}) != len(specs):
        raise SchemaError("two tensors have the same name")
    total = 0
    for spec in specs:
        size = spec.size_bytes
        if size > TENSOR_BYTES:
            raise SchemaError(f"{size} bytes, at most {TENSOR_BYTES} are allowed", spec.name)
        total += size
    if total > MESSAGE_BYTES:
        raise SchemaError(f"{total} bytes of tensors, at most {MESSAGE_BYTES} are allowed")


def _check_count(count: int) -> int:
    if count > TENSOR_FRAMES:
        raise SchemaError(f"{count} tensors, at most {TENSOR_FRAMES} are allowed")
    return count
