"""The hash of a base in one pass: every program adds its words to one number.

Formula: :mod:`.reference`. Example: the bytes 05 00 00 00 ff ff ff ff 07 add 37.

Bytes per word of 64 bits: 8 read; 8 written a program. Integers are added in whatever order and give the same sum. Our own code.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = 2048
"""Of 64 bits, of one program: 16 KiB, 128 bytes for each of its threads."""


@triton.jit
def words_kernel(words, behind, total, count, count_behind, first, BLOCK: tl.constexpr):
    """``count`` whole words, and the bytes behind them, which are the first program's. Offsets and numbers of words are 64 bits wide."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d = tl.load(words + at, mask=at < count, other=0)
    hi = d >> 32
    lo = d - (hi << 32)
    weight = (at * 2 + first) * 2 + 1
    byte_at = tl.arange(0, 8).to(tl.int64)
    is_byte = (byte_at < count_behind) & (tl.program_id(0) == 0)
    byte = tl.load(behind + byte_at, mask=is_byte, other=0).to(tl.int64)
    byte_weight = (byte_at + count + count + first) * 2 + 1
    found = tl.sum(lo * weight + hi * (weight + 2)) + tl.sum(byte * byte_weight)
    tl.atomic_add(total, found, sem="relaxed")


def add_words(data: Tensor, first: int, total: Tensor) -> None:
    """See :func:`.reference.add_words`; ``data`` begins at a multiple of 8 bytes."""
    if not data.numel():
        return
    words, behind = torch.split(data, [data.numel() // 8 * 8, data.numel() % 8])
    words = words.view(torch.int64)
    programs = max(1, triton.cdiv(words.numel(), WORDS))
    words_kernel[(programs,)](words, behind, total, words.numel(), behind.numel(), first, BLOCK=WORDS)
