"""The Walsh-Hadamard rotation, all rounds in registers.

Formula: :mod:`.reference`; the sums are those of the reference, pair by pair, and so are the bits. Example: (4, 0, 0, 0) becomes (2, 2, 2, 2).

Bytes per element: its size read, its size written; log2(n) sums. Our own code.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import block_of

_ELEMENTS = 4096
"""Of one program, at most: 32 blocks of 128."""


@triton.jit
def signs_of(i):
    """Rudin and Shapiro's sequence at ``i``, in float32."""
    pairs = i & (i >> 1)
    pairs = pairs ^ (pairs >> 16)
    pairs = pairs ^ (pairs >> 8)
    pairs = pairs ^ (pairs >> 4)
    pairs = pairs ^ (pairs >> 2)
    pairs = pairs ^ (pairs >> 1)
    return 1.0 - 2.0 * (pairs & 1).to(tl.float32)


@triton.jit
def one_round(value, BLOCK_ROWS: tl.constexpr, SIZE: tl.constexpr, DISTANCE: tl.constexpr):
    """``a, b -> a + b, a - b`` for all pairs at this distance; ``[BLOCK_ROWS, SIZE]``."""
    pairs = tl.reshape(value, (BLOCK_ROWS, SIZE // (2 * DISTANCE), 2, DISTANCE))
    a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    return tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)), (BLOCK_ROWS, SIZE))


@triton.jit
def rotate_kernel(
    x, out, blocks, blocks_of_a_row, scale,
    BLOCK_ROWS: tl.constexpr, SIZE: tl.constexpr, ROUNDS: tl.constexpr, FLIPS: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Some blocks of ``SIZE`` = 2**ROUNDS numbers, which lie one after another; offsets are 64 bits wide."""
    block = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    i = tl.arange(0, SIZE)[None, :]
    at = block[:, None] * SIZE + i
    inside = (block < blocks)[:, None] & (i < SIZE)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    place = ((block % blocks_of_a_row)[:, None] * SIZE + i).to(tl.int32)
    if FLIPS and not BACK:
        value = value * signs_of(place)
    for number in tl.static_range(ROUNDS):
        value = one_round(value, BLOCK_ROWS, SIZE, 1 << number)
    value = value * scale
    if FLIPS and BACK:
        value = value * signs_of(place)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def rotate(x: Tensor, *, flips: bool, back: bool) -> Tensor:
    """See :func:`.reference.rotate`; what is not contiguous is copied first."""
    D = x.shape[-1]
    n = block_of(D)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    blocks = x.numel() // n
    if not blocks:
        return out
    block_rows = max(1, min(triton.next_power_of_2(blocks), _ELEMENTS // n))
    rotate_kernel[(triton.cdiv(blocks, block_rows),)](
        x.contiguous(), out, blocks, D // n, 1 / math.sqrt(n),
        BLOCK_ROWS=block_rows, SIZE=n, ROUNDS=n.bit_length() - 1, FLIPS=flips, BACK=back,
    )  # fmt: skip
    return out
