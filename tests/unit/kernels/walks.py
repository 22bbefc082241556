"""Trajectories for the tests of residual codecs: what one layer's keys do from step to step, in every dtype and at odd sizes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.unit.kernels.heads import DTYPES

SIZES = ((1, 1), (1, 5), (7, 3), (3, 13), (5, 7), (2, 129), (33, 300), (1100, 2), (0, 6))
"""(Rows, channels): one, odd ones, ones that no byte divides, and more than one tile of a kernel in either direction."""
HEADS = ((1, 1, 1), (3, 2, 5), (1, 3, 7), (7, 1, 129), (40, 3, 16), (0, 2, 4))
"""(Rows, heads, head_dim)."""
PAIRS = tuple((x, base) for x in DTYPES for base in DTYPES)
"""The dtypes of x and of its base."""


def walk(
    *shape: int, steps: int, dtype: torch.dtype = torch.float32, change: float = 0.2, memory: float = 0.0, seed: int = 0
) -> Iterator[Tensor]:
    """``steps`` tensors of this shape; their rows are strided.

    Rows and channels differ in size by up to 10 each. A step adds ``change`` times a Gaussian of the numbers' own size, correlated with the last by ``memory``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator)

    size = 10.0 ** torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator)
    size = size * 10.0 ** torch.rand(shape[1:], generator=generator)
    x, increment = draw(), draw()
    for _ in range(steps):
        wide = torch.zeros(shape[0], *shape[1:-1], shape[-1] + 3, dtype=dtype)
        wide[..., : shape[-1]] = x * size
        yield wide[..., : shape[-1]]
        increment = memory * increment + (1 - memory**2) ** 0.5 * draw()
        x = x + change * increment
