"""A base of residuals kept in 8 bits: half the memory of 16, for 0.7 to 2 % more error in the closed loop.

The base *is* its quantised value, at both ends: both decode it, add the same residual and quantise again, by operations that IEEE 754 rounds in one way
only. So it stays the same bits everywhere, and what quantising costs comes back with the next residual. Formulas: :mod:`.reference`.

    dequantise(base, scales, buffer)
    encode(x, buffer, ...)  or  decode(..., buffer, ...)          # of residual_levels or residual_rows
    requantise(buffer, base, scales)

One buffer serves all bases. Fusing the three would save writing it, reading and writing it again, and reading it: 8 bytes an element with 16 bits, where what
is left to do needs 4 (x and base read, base written) and those of the code.

Shape letters: N rows (tokens of all batch rows), C channels, G groups of channels with a scale of their own (heads).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..choice import runs_triton
from . import reference

__all__ = ["base_bytes", "dequantise", "requantise"]


def base_bytes(rows: int, channels: int, groups: int) -> int:
    """Bytes of one base with its scales."""
    return rows * (channels + 4 * groups)


def dequantise(base_NC: Tensor, scales_NG: Tensor, out_NC: Tensor) -> None:
    """Write what the base stands for into ``out_NC``, in its dtype.

    Args:
        base_NC: int8, contiguous.
        scales_NG: float32, contiguous; G divides C.
        out_NC: fp32, bf16 or fp16, contiguous.

    Raises:
        ValueError: shapes, dtypes or strides are none of these.
    """
    _check(base_NC, scales_NG, out_NC)
    if runs_triton(base_NC, scales_NG, out_NC):
        from .triton import dequantise as expand

        expand(base_NC, scales_NG, out_NC)
    else:
        reference.dequantise(base_NC, scales_NG, out_NC)


def requantise(x_NC: Tensor, base_NC: Tensor, scales_NG: Tensor) -> None:
    """Write ``x_NC`` into the base and its scales; arguments and errors as for :func:`dequantise`."""
    _check(base_NC, scales_NG, x_NC)
    if runs_triton(x_NC, base_NC, scales_NG):
        from .triton import requantise as quantise

        quantise(x_NC, base_NC, scales_NG)
    else:
        reference.requantise(x_NC, base_NC, scales_NG)


def _check(base_NC: Tensor, scales_NG: Tensor, other_NC: Tensor) -> None:
    if base_NC.dtype != torch.int8 or scales_NG.dtype != torch.float32:
        raise ValueError(f"Give an int8 base with float32 scales, not {base_NC.dtype} with {scales_NG.dtype}.")
    shapes = [list(x.shape) for x in (base_NC, scales_NG, other_NC)]
    (rows, channels), groups = base_NC.shape, scales_NG.shape[-1]
    if not groups or channels % groups or shapes[1:] != [[rows, groups], [rows, channels]]:
        raise ValueError(f"Give a base [N, C], scales [N, G], G dividing C, and a buffer [N, C], not {shapes}.")
    if not (base_NC.is_contiguous() and scales_NG.is_contiguous() and other_NC.is_contiguous()):
        raise ValueError("Give a base, scales and a buffer that are contiguous.")
