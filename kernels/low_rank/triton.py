"""Low-rank residuals decoded and added in one pass over the base.

Formula, formats and why the bits are those of the reference: :mod:`.reference`. Example, rank 1: the codes (0, 15, 3) and (15, 0) with scales 1 and lows 0
add (0, 0), (225, 0), (45, 0).

Bytes per element: its size read and written; the payload, a hundredth of it, comes from the cache. Per element also R multiply-adds, and R decoded numbers for every
three: at rank 32 that is the limit, not memory. Not ``tl.dot``: the order of its sums is the architecture's own. Our own code.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .formats import COMPONENT_BYTES, rank_in

_BLOCK_ROWS, _BLOCK_COLUMNS = 16, 512
"""Wide: a thread has some columns of all rows, decodes the number of each, and multiplies all with all."""


@triton.jit
def decoded(codes, half, scale_at, low_at, k, i, length):
    """Elements ``i`` of component k of a factor: float32 numbers that float16 can hold. ``half``: bytes of a component."""
    byte = tl.load(codes + k * half + i // 2, mask=i < length, other=0).to(tl.int32)
    code = ((byte >> ((i % 2) * 4)) & 15).to(tl.float32)
    scale, low = tl.load(scale_at + k).to(tl.float32), tl.load(low_at + k).to(tl.float32)
    return (code * scale + low).to(tl.float16).to(tl.float32)


@triton.jit
def add_kernel(payload, scales, base, rows, columns, rank, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """One tile of the base; offsets in it are 64 bits wide. ``scales``: the payload's first bytes, as float16."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    u_half, v_half = (rows + 1) // 2, (columns + 1) // 2
    u_codes = payload + rank * 8
    v_codes = u_codes + rank * u_half
    product = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    # One after another: this order is the format.
    for k in range(rank):
        u = decoded(u_codes, u_half, scales, scales + rank, k, n, rows)
        v = decoded(v_codes, v_half, scales + 2 * rank, scales + 3 * rank, k, c, columns)
        product = tl.fma(u[:, None], v[None, :], product)
    at = base + n.to(tl.int64)[:, None] * columns + c[None, :]
    inside = (n < rows)[:, None] & (c < columns)[None, :]
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32) + product
    tl.store(at, value.to(base.dtype.element_ty), mask=inside)


def add_decoded(payload: Tensor, base_NC: Tensor) -> None:
    """See :func:`.reference.add_decoded`; the base is contiguous."""
    N, C = base_NC.shape
    rank = rank_in(payload.numel(), N, C)
    if not rank:
        return
    # A slice of a buffer may begin at an odd byte, where nothing can be read as float16.
    aligned = payload if payload.data_ptr() % 2 == 0 else payload.clone()
    scales = aligned[: rank * COMPONENT_BYTES].view(torch.float16)
    block_columns = min(_BLOCK_COLUMNS, triton.next_power_of_2(C))
    add_kernel[(triton.cdiv(N, _BLOCK_ROWS), triton.cdiv(C, block_columns))](
        aligned, scales, base_NC, N, C, rank, BLOCK_N=_BLOCK_ROWS, BLOCK_C=block_columns
    )
