"""The same pictures drawn twice, without and with compression: how far apart they are, and how they lie side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

PEAK = 255.0
"""Of a colour in 8 bits."""


def psnr_db(measured_BHWC: Tensor, expected_BHWC: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of uint8 pictures, ``10 log10(255^2 / mean squared difference)``; infinite for equal ones."""
    difference = measured_BHWC.double() - expected_BHWC.double()
    errors: list[float] = difference.square().flatten(1).mean(1).tolist()
    return [10 * math.log10(PEAK**2 / error) if error else math.inf for error in errors]


def psnr_text(values_db: Sequence[float]) -> str:
    """The median, for people."""
    median_db = statistics.median(values_db)
    return f"PSNR {median_db:.1f} dB (median)" if math.isfinite(median_db) else "the same pictures, bit for bit"


def side_by_side(first_BHWC: Tensor, second_BHWC: Tensor) -> Tensor:
    """``[2 B, ...]``: each picture of ``first`` with that of ``second`` behind it. An even number of columns never parts a pair."""
    return torch.stack((first_BHWC, second_BHWC), dim=1).flatten(0, 1)


def labelled(captions: Sequence[str], names: tuple[str, str]) -> list[str]:
    """The captions of :func:`side_by_side`, each beginning with the name of its row: ``off: a red circle``."""
    return [f"{name}: {caption}" for caption in captions for name in names]
