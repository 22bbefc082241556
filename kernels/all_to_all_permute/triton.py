"""The order of the Ulysses all-to-all, one launch for q, k and v.

Formula: :mod:`.reference`. Example: 2 parts, 4 heads, token t: row (0, t) of the buffer holds heads 0 and 1, row (1, t) heads 2 and 3.
Bytes per element: its size read, its size written. Our own code.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 4096
"""Of one program, at most: 32 head rows of 128."""


@triton.jit
def head_row_places(x, buffer, n, batch, h, x_b, x_t, x_h, row_size, BLOCK_ROWS: tl.constexpr):
    """This program's head rows, some of one token in one part: (is one, where it begins in ``x``, the token's row, place within it).

    Offsets are 64 bits wide; only whole programs divide by them.
    """
    token_of_part = tl.program_id(0).to(tl.int64)
    part, token = token_of_part // n, token_of_part % n
    row = tl.program_id(2) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    b, head = (row // h).to(tl.int64), (row % h).to(tl.int64)
    x_at = x + token * x_t + b * x_b + (part * h + head) * x_h
    return row < batch * h, x_at, buffer + token_of_part * row_size, row.to(tl.int64)


@triton.jit
def move_rows(
    x, buffer, n, batch, h, width, x_b, x_t, x_h, row_size, offset,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr, PACKS: tl.constexpr,
):  # fmt: skip
    """Copy head rows of ``width`` elements from ``x`` into the buffer, or back. ``row_size``, ``offset``: elements of the buffer."""
    is_row, x_at, token_at, row = head_row_places(x, buffer, n, batch, h, x_b, x_t, x_h, row_size, BLOCK_ROWS)
    d = tl.arange(0, BLOCK)[None, :]
    inside = is_row[:, None] & (d < width)
    x_at = x_at[:, None] + d
    buffer_at = token_at + offset + (row * width)[:, None] + d
    if PACKS:
        tl.store(buffer_at, tl.load(x_at, mask=inside), mask=inside)
    else:
        tl.store(x_at, tl.load(buffer_at, mask=inside), mask=inside)


@triton.jit
def move_kernel(
    q, k, v, buffer, n, batch, h, width, q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, row_size,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr, PACKS: tl.constexpr,
):  # fmt: skip
    """The second axis of the grid says which tensor."""
    piece = batch * h * width
    if tl.program_id(1) == 0:
        move_rows(q, buffer, n, batch, h, width, q_b, q_t, q_h, row_size, 0, BLOCK_ROWS, BLOCK, PACKS)
    elif tl.program_id(1) == 1:
        move_rows(k, buffer, n, batch, h, width, k_b, k_t, k_h, row_size, piece, BLOCK_ROWS, BLOCK, PACKS)
    else:
        move_rows(v, buffer, n, batch, h, width, v_b, v_t, v_h, row_size, 2 * piece, BLOCK_ROWS, BLOCK, PACKS)


def rows_of_a_program(rows: int, block: int) -> int:
    """How many of a token's ``rows`` head rows one program takes, a power of 2, when each fills ``block`` lanes."""
    return max(1, min(power_of_2(rows), _ELEMENTS // block))


def power_of_2(number: int) -> int:
    """The least one that is no smaller."""
    return 1 << (number - 1).bit_length()


def _move(tensors: Sequence[Tensor], buffer: Tensor, *, packs: bool) -> None:
    """``buffer`` ``[P, n, T, B, h, D]``, contiguous; one to three tensors."""
    parts, n, count, B, h, D = buffer.shape
    if not buffer.numel():
        return
    block = power_of_2(D)
    block_rows = rows_of_a_program(B * h, block)
    q, k, v = (*tensors, *[tensors[0]] * (3 - count))
    move_kernel[(parts * n, count, triton.cdiv(B * h, block_rows))](
        q, k, v, buffer, n, B, h, D, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], count * B * h * D,
        BLOCK_ROWS=block_rows, BLOCK=block, PACKS=packs,
    )  # fmt: skip


def pack_heads(tensors: Sequence[Tensor], parts: int) -> Tensor:
    """See :func:`.reference.pack_heads`; one to three tensors, whose last dimension is dense."""
    B, n, H, D = tensors[0].shape
    buffer = tensors[0].new_empty(parts, n, len(tensors), B, H // parts, D)
    _move(tuple(tensors), buffer, packs=True)
    return buffer


def unpack_heads(packed_PnTBhD: Tensor) -> tuple[Tensor, ...]:
    """See :func:`.reference.unpack_heads`; always copies. One to three tensors."""
    parts, n, count, B, h, D = packed_PnTBhD.shape
    tensors = tuple(packed_PnTBhD.new_empty(B, n, parts * h, D) for _ in range(count))
    _move(tensors, packed_PnTBhD.contiguous(), packs=False)
    return tensors
