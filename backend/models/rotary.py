"""Rotary angles of token grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    """``theta^(-2i/dim)`` for ``i < dim / 2``, float64."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)


def angles(positions: Sequence[Tensor], axes: Sequence[int], theta: float) -> Tensor:
    """Angles of tokens, float64 ``[tokens, sum(axes) / 2]``: each axis' positions ``[tokens]`` times that axis' frequencies."""
    parts = [
        position[:, None] * frequencies(dim, theta, position.device)
        for position, dim in zip(positions, axes, strict=True)
    ]
    return torch.cat(parts, dim=-1)


def grid_angles(sizes: Sequence[int], axes: Sequence[int], theta: float, device: torch.device) -> Tensor:
    """Angles of a grid's tokens, row-major, float64 ``[tokens, sum(axes) / 2]``."""
    positions = torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")
    return angles([position.flatten() for position in positions], axes, theta)
