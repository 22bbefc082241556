"""Element types on the wire, named as safetensors names them."""

from __future__ import annotations

from typing import Final, Literal

ITEM_BYTES: Final[dict[str, int]] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element."""

ComputeDtype = Literal["F32", "BF16", "F16"]
"""What a model can compute in."""
