"""What a coded head row looks like: formats and exact sizes."""

from __future__ import annotations

from typing import Final

from ..row_quantise.formats import LIMITS as BYTE_LIMITS
from ..row_quantise.formats import SCALE_BYTES

LIMITS: Final = {**BYTE_LIMITS, "int4": 7.0}
"""Format -> greatest magnitude of its payload: ``fp8``, ``int8``, and symmetric half bytes."""


def values_per_byte(form: str) -> int:
    """How many numbers share a byte."""
    return 2 if form == "int4" else 1


def row_bytes(form: str, head_dim: int) -> int:
    """Bytes of one head row: its numbers, the last half byte of an odd row padded with zero, and the float32 scale."""
    return -(-head_dim // values_per_byte(form)) + SCALE_BYTES


def payload_bytes(form: str, rows: int, heads: int, head_dim: int) -> int:
    """Bytes of ``rows`` tokens (of all batch rows)."""
    return rows * heads * row_bytes(form, head_dim)
