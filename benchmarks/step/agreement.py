"""Contestants must compute the same, or what they are compared for means nothing."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

ALLOWED: Final = {
    # Orders of summing differ between plans and between kernels; compiled code fuses roundings away. Without any exchange between ranks
    # a velocity is off by more than 1e-2 in float32.
    torch.float32: 1e-4,
    torch.bfloat16: 1e-1,
}
"""max|a - b| / max|b|"""


def disagreement(velocity: Tensor, reference: Tensor | None, dtype: torch.dtype) -> str | None:
    """Why a contestant's velocity cannot be right; None when it can. Without a reference it has to be finite."""
    if not velocity.isfinite().all():
        return "its velocity is not finite"
    if reference is None:
        return None
    error = float((velocity - reference).abs().max() / reference.abs().max())
    return None if error <= ALLOWED[dtype] else f"its velocity is off by {error:.1e} ({ALLOWED[dtype]:.0e} allowed)"
