"""The Walsh-Hadamard rotation of head rows: what is one spike before is a little in every place after.

It is for residuals that are quantised to one or two bits: a scale per row and channel follows great tokens and great channels, but not single great
numbers. Queries and keys rotated alike have the scores that they had, so nothing need be rotated back before an attention. Where values are as good
as Gaussian already, it changes nothing.

Shape letters: D head_dim, n block (the greatest power of two that divides D).
"""

from __future__ import annotations

from torch import Tensor

from ..choice import runs_triton
from . import reference
from .reference import block_of

__all__ = ["block_of", "rotate", "rotate_back"]


def rotate(x: Tensor, *, flips: bool = False) -> Tensor:
    """``[..., D]`` of float32, bfloat16 or float16 -> its rotation, of the same shape and dtype, contiguous; see :func:`.reference.rotate`.

    With ``flips``, elements change sign by a fixed pattern first, so that an even row, which is as usual as a spike, does not become one.

    The Triton kernel runs on CUDA where triton is installed.
    """
    return _rotate(x, flips=flips, back=False)


def rotate_back(x: Tensor, *, flips: bool = False) -> Tensor:
    """The inverse of :func:`rotate`, up to rounding; without ``flips`` that is the rotation itself."""
    return _rotate(x, flips=flips, back=True)


def _rotate(x: Tensor, *, flips: bool, back: bool) -> Tensor:
    if runs_triton(x):
        from .triton import rotate as rotate_rows

        return rotate_rows(x, flips=flips, back=back)
    return reference.rotate(x, flips=flips, back=back)
