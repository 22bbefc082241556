"""Element types on the wire, named as safetensors names them. Says what torch calls them, and imports no torch: the daemon has none."""

from __future__ import annotations

from typing import Final, Literal

WireDtype = Literal["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"]
"""Every element type that a tensor frame can have."""

ITEM_BYTES: Final[dict[WireDtype, int]] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element."""

TORCH_NAMES: Final[dict[WireDtype, str]] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""The attribute of torch that is the same type."""

ComputeDtype = Literal["F32", "BF16", "F16"]
"""What a model can compute in."""
COMPUTE_DTYPES: Final[tuple[ComputeDtype, ...]] = ("F32", "BF16", "F16")
