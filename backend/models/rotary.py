"""Rotary angles of token grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    """``theta^(-2i/dim)`` for ``i < dim / 2``, float64."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)


def grid_angles(sizes: Sequence[int], axes: Sequence[int], theta: float, device: torch.device) -> Tensor:
    """Angles of a grid's tokens, row-major, float64 ``[tokens, sum(axes) / 2]``: position on each axis times that axis' frequencies."""
    positions = torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")
    parts = [
        position.flatten()[:, None] * frequencies(dim, theta, device)
        for position, dim in zip(positions, axes, strict=True)
    ]
    return torch.cat(parts, dim=-1)
