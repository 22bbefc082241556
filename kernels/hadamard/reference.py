"""The Walsh-Hadamard rotation in torch: the specification. Shape letters as in the package.

The last dimension is cut into D / n blocks, n the greatest power of two that divides D (128 is one block, 96 three of 32, 80 five of 16, and an odd D
stays as it is). A block ``x`` becomes ``H x / sqrt(n)``::

    H[i, j] = (-1)**popcount(i & j)          Sylvester's order; symmetric, and its own inverse with that scale
    signs   = (-1)**popcount(i & (i >> 1))   Rudin and Shapiro's sequence, i from 0 to D - 1
    rotate  = H diag(signs) / sqrt(n)        with flips, else H / sqrt(n)
    back    = diag(signs) H / sqrt(n)

in float32, as log2(n) rounds of ``a, b -> a + b, a - b`` at distances 1, 2, 4, ...; then one rounding to the dtype of the input.

Example: (4, 0, 0, 0) becomes (2, 2, 2, 2), and (1, 1, 1, 1) becomes (2, 0, 0, 0); with flips, whose signs are (1, 1, 1, -1), the latter
becomes (1, 1, 1, -1): no row of H is near Rudin and Shapiro's sequence, whose spectrum is flat. A NaN or an infinity makes NaN or infinities of its whole block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def block_of(head_dim: int) -> int:
    """The greatest power of two that divides ``head_dim``: what is rotated together.

    Raises:
        ValueError: ``head_dim`` is less than one.
    """
    if head_dim < 1:
        raise ValueError(f"Give rows of one number or more: head_dim {head_dim} has nothing to rotate.")
    return head_dim & -head_dim


def signs(head_dim: int, device: torch.device) -> Tensor:
    """Rudin and Shapiro's sequence, float32 ``[D]``."""
    i = torch.arange(head_dim, device=device)
    pairs = i & (i >> 1)
    # The parity of a number's bits is that of its halves' exclusive or.
    for shift in (16, 8, 4, 2, 1):
        pairs = pairs ^ (pairs >> shift)
    return 1.0 - 2.0 * (pairs & 1).float()


def rotate(x: Tensor, *, flips: bool, back: bool) -> Tensor:
    """``[..., D]`` -> the same shape and dtype, by the formula above."""
    D = x.shape[-1]
    n, rows = block_of(D), x.float()
    if flips and not back:
        rows = rows * signs(D, x.device)
    distance = 1
    while distance < n:
        a, b = rows.reshape(*x.shape[:-1], D // (2 * distance), 2, distance).unbind(-2)
        rows = torch.stack([a + b, a - b], dim=-2).view(x.shape)
        distance *= 2
    rows = rows * (1 / math.sqrt(n))
    if flips and back:
        rows = rows * signs(D, x.device)
    return rows.to(x.dtype).contiguous()
