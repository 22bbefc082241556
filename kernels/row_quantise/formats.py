"""What a head row looks like in a packed buffer: formats, sizes, and which GPUs have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

RAW: Final = "raw"
LIMITS: Final = {"fp8": 448.0, "int8": 127.0}
"""Format -> greatest magnitude of its payload: of e4m3 (the finite kind, without infinities), and of the symmetric bytes."""
SCALE_BYTES: Final = 4
"""One float32 after the payload of every head row."""
LEAST_MAXIMUM: Final = 2.0**-100
"""Stands for a smaller maximum of a row, zero above all, in its scale: so the scale and its reciprocal are normal numbers."""
FP8_SINCE: Final = (8, 9)
"""First CUDA compute capability with instructions for e4m3 (Ada)."""


def piece_bytes(form: str, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one head row of ``head_dim`` numbers: ``D + 4`` quantised, as many as the dtype needs raw."""
    return head_dim * dtype.itemsize if form == RAW else head_dim + SCALE_BYTES


def token_bytes(forms: Sequence[str], heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one token in one part, ``heads`` counting those of all batch rows."""
    return heads * sum(piece_bytes(form, head_dim, dtype) for form in forms)


def heads_of(size: int, forms: Sequence[str], batch: int, head_dim: int, dtype: torch.dtype) -> int:
    """The heads of a token of ``size`` bytes in one part: the inverse of :func:`token_bytes`.

    Raises:
        ValueError: these are no whole head rows.
    """
    heads, rest = divmod(size, token_bytes(forms, batch, head_dim, dtype))
    if rest:
        raise ValueError(
            f"Give whole head rows: {size} bytes a token are none of {list(forms)} with head_dim {head_dim}."
        )
    return heads


def why_not_on(form: str, capability: tuple[int, int]) -> str | None:
    """Why a GPU of this compute capability cannot do ``form``, and what to take instead; ``None`` where it can."""
    if form != "fp8" or capability >= FP8_SINCE:
        return None
    return f"Take int8 in place of fp8: a GPU of compute capability {capability[0]}.{capability[1]} has no 8-bit floats (8.9 and newer have)."
