"""Trajectories that move from step to step as FLUX.1's keys and values were measured to: synthetic numbers with a published pace.

CompactFusion's repository holds the mean over all layers of ``|x' - x| / |x|`` in 28 steps of FLUX.1-dev at 1024 x 1024 (Frobenius norms). Everything else
is assumed, and written down here: rows and channels differ in size by up to ten each, a step goes partly in the direction of the step before, and
directions, but for these sizes, are either white, which no low rank can hold, or of a spectrum that falls as one over the root of the component's number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

CHANGES: Final = (
    0.46, 0.35, 0.29, 0.25, 0.20, 0.17, 0.18, 0.16, 0.17, 0.22, 0.26, 0.15, *[0.14] * 10, 0.19, 0.20, 0.21, 0.24, 0.31,
)  # fmt: skip
"""``|x' - x| / |x|`` from each of 28 steps to the next; of the middle only the level is published."""
STEPS: Final = len(CHANGES) + 1
MEMORY: Final = 0.5
"""Correlation of the directions of two neighbouring steps."""
COMPONENTS: Final = 256
"""Of directions with a falling spectrum."""
WHITE, FALLING = "white", "falling"
SPECTRA: Final = (WHITE, FALLING)


def changes(steps: int) -> list[float]:
    """The published pace for a trajectory of some other length: read off at equal shares of it."""
    if steps < 3:
        return list(CHANGES[: steps - 1])
    places = [index * (len(CHANGES) - 1) / (steps - 2) for index in range(steps - 1)]
    found = []
    for place in places:
        low = min(math.floor(place), len(CHANGES) - 2)
        found.append(CHANGES[low] + (CHANGES[low + 1] - CHANGES[low]) * (place - low))
    return found


def published_walk(
    rows: int, channels: int, *, steps: int = STEPS, seed: int = 0, device: torch.device, spectrum: str = WHITE
) -> Iterator[Tensor]:
    """``steps`` float32 matrices ``[N, C]`` of one norm; each differs from the one before by exactly the published share of it.

    ``x' = (1 - p**2 / 2) x + p (1 - p**2 / 4)**0.5 n``, n being as long as x and at right angles to it.
    """
    generator = torch.Generator(device).manual_seed(seed)
    size = 10.0 ** torch.rand(rows, 1, generator=generator, device=device)
    size = size * 10.0 ** torch.rand(1, channels, generator=generator, device=device)

    def draw(of: str) -> Tensor:
        if of == WHITE:
            return size * torch.randn(rows, channels, generator=generator, device=device)
        inner = min(COMPONENTS, rows, channels)
        weights = torch.arange(1, inner + 1, device=device) ** -0.5
        left = torch.randn(rows, inner, generator=generator, device=device) * weights
        return size * (left @ torch.randn(inner, channels, generator=generator, device=device))

    x = draw(WHITE)
    motion = draw(spectrum)
    yield x
    for share in changes(steps):
        motion = MEMORY * motion + (1 - MEMORY**2) ** 0.5 * draw(spectrum)
        across = motion - (motion * x).sum() / x.square().sum() * x
        across *= x.norm() / across.norm()
        x = (1 - share**2 / 2) * x + share * (1 - share**2 / 4) ** 0.5 * across
        yield x
