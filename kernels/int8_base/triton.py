"""A base in 8 bits: into a buffer and back, in one pass each.

Formula: :mod:`.reference`. Example: (0, 1, -2) becomes (0, 64, -127) with the scale 0.015748024.

Bytes per element: 1 read and those of the buffer written, and the other way round; 4 a row and group. Our own code.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..all_to_all_permute.triton import power_of_2
from ..explicit_rounding.triton import short_scale, stored, whole
from .reference import LIMIT

_ELEMENTS = 4096
"""Of one program, at most: 32 groups of 128."""
_LIMIT = tl.constexpr(LIMIT)


@triton.jit
def groups_of_program(groups, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(Group ``[ROWS]`` of all rows, which are there, where their elements are, which are there)."""
    group = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)[None, :]
    is_group = group < groups
    return group, is_group, (group * width)[:, None] + d, is_group[:, None] & (d < width)


@triton.jit
def dequantise_kernel(base, scales, out, groups, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Some groups into the buffer."""
    group, is_group, at, inside = groups_of_program(groups, width, ROWS, BLOCK)
    scale = tl.load(scales + group, mask=is_group, other=0.0)
    value = tl.load(base + at, mask=inside, other=0).to(tl.float32) * scale[:, None]
    tl.store(out + at, stored(value, out.dtype.element_ty), mask=inside)


@triton.jit
def requantise_kernel(x, base, scales, groups, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Some groups into the base."""
    group, is_group, at, inside = groups_of_program(groups, width, ROWS, BLOCK)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    magnitude = tl.abs(value)
    is_broken = tl.sum((~(magnitude < float("inf"))).to(tl.int32), axis=1) > 0
    scale = short_scale(tl.max(magnitude, axis=1), is_broken, _LIMIT)
    # Triton's own / is not correctly rounded.
    quotient = tl.div_rn(value, tl.broadcast_to(scale[:, None], (ROWS, BLOCK)))
    tl.store(base + at, whole(quotient, is_broken[:, None]).to(tl.int8), mask=inside)
    tl.store(scales + group, scale, mask=is_group)


def _shape(groups: int, width: int) -> dict[str, int]:
    block = power_of_2(width)
    return {"ROWS": max(1, min(power_of_2(groups), _ELEMENTS // block)), "BLOCK": block}


def dequantise(base_NC: Tensor, scales_NG: Tensor, out_NC: Tensor) -> None:
    """See :func:`.reference.dequantise`."""
    groups, width = scales_NG.numel(), base_NC.shape[1] // scales_NG.shape[1]
    if groups:
        shape = _shape(groups, width)
        dequantise_kernel[(triton.cdiv(groups, shape["ROWS"]),)](base_NC, scales_NG, out_NC, groups, width, **shape)


def requantise(x_NC: Tensor, base_NC: Tensor, scales_NG: Tensor) -> None:
    """See :func:`.reference.requantise`."""
    groups, width = scales_NG.numel(), base_NC.shape[1] // scales_NG.shape[1]
    if groups:
        shape = _shape(groups, width)
        requantise_kernel[(triton.cdiv(groups, shape["ROWS"]),)](x_NC, base_NC, scales_NG, groups, width, **shape)
