"""Activations for the tests of residual codecs: odd shapes, decaying spectra, and walks from step to step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SHAPES = {
    "usual": (33, 48, 8),
    "both odd, more than a tile": (37, 531, 5),
    "rank above both": (5, 3, 32),
    "one row": (1, 9, 4),
    "one column": (9, 1, 4),
    "one number": (1, 1, 1),
    "no row": (0, 6, 4),
    "no column": (6, 0, 4),
}
"""Name -> (rows, columns, rank asked for)."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def basis(columns: int, seed: int, decay: float = 1.0) -> Tensor:
    """``[C, C]`` whose i-th row has length ``i ** -decay``, all at right angles: directions as channels of activations have them."""
    directions = torch.linalg.qr(torch.randn(columns, columns, generator=generator(seed)))[0]
    return directions * torch.arange(1.0, columns + 1)[:, None] ** -decay


def walk(rows: int, columns: int, steps: int, seed: int = 0, size: float = 0.15) -> Iterator[Tensor]:
    """``[N, C]`` in float32, step by step; each differs from the one before by ``size`` of the first."""
    draws, directions = generator(seed + 1), basis(columns, seed)
    x = torch.randn(rows, columns, generator=draws) @ directions
    yield x
    for _ in range(steps):
        x = x + size * (torch.randn(rows, columns, generator=draws) @ directions)
        yield x


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Frobenius."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())
