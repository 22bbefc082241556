"""The merge of partial attentions as one pass over the output.

Formula: :mod:`.reference`. Example for one row of two elements: ``out_a = (1, 0)``, ``out_b = (3, 2)``, ``lse_a = 0``, ``lse_b = log 3``
give ``w = 3/4``, ``out = (2.5, 1.5)``, ``lse = log 4``.

Bytes per element of the output: 4 read, 4 written, and those of the part read (2 or 4); per row 12 more for the two sums. Our own code.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048
"""Of one program: 16 rows of 128."""


@triton.jit
def merge_kernel(
    out, lse, part, part_lse, tokens, width,
    out_b, out_h, out_s, lse_b, lse_h, lse_s, part_b, part_h, part_s, part_lse_b, part_lse_h, part_lse_s,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows of one program are tokens of one head and batch row; offsets are 64 bits wide."""
    s = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    is_row = s < tokens
    lse_at = lse + b * lse_b + h * lse_h + s * lse_s
    a = tl.load(lse_at, mask=is_row, other=0.0)
    c = tl.load(part_lse + b * part_lse_b + h * part_lse_h + s * part_lse_s, mask=is_row, other=0.0).to(tl.float32)
    infinite = float("inf")
    weight = tl.where(c == -infinite, 0.0, 1.0 / (1.0 + tl.exp(a - c)))
    # The compare keeps NaN: a maximum of a number and NaN may be the number.
    top, low = tl.where(a > c, a, c), tl.where(a > c, c, a)
    summed = tl.where(top == -infinite, top, top + tl.log(1.0 + tl.exp(low - top)))
    tl.store(lse_at, tl.where((a != a) | (c != c), a + c, summed), mask=is_row)

    d = tl.arange(0, BLOCK_D)[None, :]
    inside = is_row[:, None] & (d < width)
    out_at = out + (b * out_b + h * out_h + s * out_s)[:, None] + d
    x = tl.load(out_at, mask=inside, other=0.0)
    y = tl.load(part + (b * part_b + h * part_h + s * part_s)[:, None] + d, mask=inside, other=0.0).to(tl.float32)
    w = weight[:, None]
    # As torch does: from the nearer end, so that a weight of 0 or 1 gives that end exactly.
    tl.store(out_at, tl.where(w < 0.5, x + w * (y - x), y - (y - x) * (1.0 - w)), mask=inside)


def lse_merge(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor) -> None:
    """See :func:`.reference.lse_merge`. ``out`` is float32; the last dimension of both outputs is dense."""
    B, H, S, D = out.shape
    if not out.numel():
        return
    block_d = triton.next_power_of_2(D)
    block_rows = max(1, min(triton.next_power_of_2(S), _ELEMENTS // block_d))
    merge_kernel[(triton.cdiv(S, block_rows), H, B)](
        out, lse, part_out, part_lse, S, D,
        *out.stride()[:3], *lse.stride(), *part_out.stride()[:3], *part_lse.stride(),
        BLOCK_ROWS=block_rows, BLOCK_D=block_d,
    )  # fmt: skip
