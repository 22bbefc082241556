"""The roundings in torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from . import HALF_MAX

LEAST_MAXIMUM = 2.0**-100
"""Stands for a smaller maximum, zero above all: so the scale is a normal number, and a product of it and any payload too."""


def half(product: Tensor) -> Tensor:
    """Float32 to the nearest that fp16 has, ties to even, still float32; beyond its range the greatest finite one. NaN stays NaN.

    Example: 1.6 becomes 1.599609375, and 1e5 becomes 65504.
    """
    return product.clamp(-HALF_MAX, HALF_MAX).half().float()


def short_scale(greatest: Tensor, limit: float) -> Tensor:
    """``max(greatest, 2**-100) / limit``, cut to its 16 leading bits: float32. NaN where ``greatest`` is not finite.

    With any payload of 8 significant bits the product then has 24, as many as float32: it is exact. Cutting makes a scale smaller by up to 2**-15 of
    itself, and the greatest payload ``limit * (1 + 2**-15)`` before it is rounded, which is still ``limit`` after it.

    Example: ``2 / 127 = 0.015748031`` (0x3c810204 in bits) becomes 0.015748024 (0x3c810200).
    """
    scale = greatest.clamp_min(LEAST_MAXIMUM) / limit
    cut = scale.view(torch.int32).bitwise_and(-256).view(torch.float32)
    return torch.where(greatest.isfinite(), cut, torch.nan)
