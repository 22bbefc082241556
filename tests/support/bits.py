"""Whether tensors are the same to the last bit."""

from __future__ import annotations

import torch
from torch import Tensor


def same_bits(a: Tensor, b: Tensor) -> bool:
    """In dtype, shape and every bit, those of zeros' signs and of NaN included."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )


def same_bits_or_nan(a: Tensor, b: Tensor) -> bool:
    """Likewise, but of NaN only where they are: devices make different ones."""
    if not a.is_floating_point():
        return same_bits(a, b)
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    return same_bits(torch.where(a.isnan(), 0.0, a), torch.where(b.isnan(), 0.0, b))
