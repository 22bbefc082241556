"""The measure of parity: max |a - b| / max |b|, b being the reference."""

from __future__ import annotations

from torch import Tensor

FP32_TOLERANCE = 1e-5
"""Split attention and another thread count move fp32 results by at most 1e-6 (measured); a 0.1 % error in one matrix shows as 1e-4."""


def relative_error(result: Tensor, reference: Tensor) -> float:
    """The largest absolute difference over the largest absolute value of the reference; infinite when shapes differ or a value is not finite."""
    if result.shape != reference.shape or not bool(result.isfinite().all()):
        return float("inf")
    return float((result.double() - reference.double()).abs().max() / reference.double().abs().max())
