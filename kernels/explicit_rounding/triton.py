"""The roundings inside Triton kernels; what they are: :mod:`.reference`."""

from __future__ import annotations

import triton
import triton.language as tl

from . import HALF_MAX
from .reference import LEAST_MAXIMUM

_HALF_MAX, _LEAST = tl.constexpr(HALF_MAX), tl.constexpr(LEAST_MAXIMUM)
_ROUNDER = tl.constexpr(1.5 * 2.0**23)
"""Added to and taken from a float32 below 2**22, it leaves the nearest whole number, ties to even: where the last place is worth 1."""


@triton.jit
def half(product):
    """Of products that are not negative and not NaN."""
    return tl.minimum(product, _HALF_MAX).to(tl.float16).to(tl.float32)


@triton.jit
def short_scale(greatest, is_bad, limit):
    """``is_bad`` is handed in: a maximum need not keep NaN."""
    scale = tl.div_rn(tl.where(greatest > _LEAST, greatest, _LEAST), limit)
    cut = (scale.to(tl.uint32, bitcast=True) & 0xFFFFFF00).to(tl.float32, bitcast=True)
    return tl.where(is_bad, float("nan"), cut)


@triton.jit
def whole(value, is_bad):
    """To whole numbers, ties to even; 0 where ``is_bad``. The select also keeps ``value``'s own product out of a fused addition."""
    return (tl.where(is_bad, 0.0, value) + _ROUNDER) - _ROUNDER


@triton.jit
def stored(value, dtype: tl.constexpr):
    """Float32 as ``dtype``, to the nearest, ties to even.

    For bfloat16 in integers: the same bits as a GPU's own cast, and unlike it also in Triton's interpreter, which cuts.
    """
    if dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # Rounding up could carry a NaN's bits into its sign.
        return tl.where(value != value, 0x7FC0, rounded).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)
