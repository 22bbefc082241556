"""The hash of bases in torch: the specification.

The bytes of a tensor are words of 64 bits, little-endian, and each of these is two: ``hi``, the upper 32 bits with their sign, and ``lo``, the lower ones
without. Bytes behind the last whole word are a word each. So words have the numbers ``k = 0, 1, 2, ...``, ``lo`` before its ``hi``, and on from
tensor to tensor::

    hash = sum over k of word[k] (2 k + 1)      modulo 2**64

Example: the bytes 05 00 00 00 ff ff ff ff 07 are ``lo = 5, hi = -1`` and a 7, and add ``5 * 1 - 1 * 3 + 7 * 5 = 37``.

What always changes it, of n <= 2**31 words (all differences of words below are less than 2**32):

* One wrong word: its difference times an odd number is no multiple of 2**64.
* Two wrong bits: ``2**a (2 i + 1) +- 2**b (2 k + 1)`` with ``a <= b < 32``. If ``a < b`` that is ``2**a`` times an odd number. If not, it is ``2**(a + 1)`` times
  ``i - k`` or ``i + k + 1``, neither 0 nor 2**32 or more: less than 2**64.
* Two words u (number i) and v (number k) that change places. Where i is a ``lo``, k a ``hi``, and just one of the two has its highest bit, which then counts otherwise:
  ``+-2 (d (k - i) - 2**31 (2 k + 1))`` with ``d = |v - u|`` as of ``lo``. It is 0 only if ``k - i > k + 1/2``, ``+-2**64`` only if ``i > 2**31 - 1/2``, and never beyond.
  Anywhere else: ``2 (v - u) (i - k)``, less than 2**64.

Words of 64 bits would not do: flip the highest bits of two, and ``2**63 (2 i + 1) + 2**63 (2 k + 1)`` is 0. Nor would a hash of each tensor times a constant: some pairs
of bits in two tensors then have weights that add up to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS = 384
"""Of the rectangle that is summed. Three times a power of 2: rows a power of 2 apart share few cache lines, and columns take twice the time to add."""
_ROWS = 256
"""Whose ``hi`` a CPU writes at once, 768 KiB: what stays in its cache, in memory that it need not ask for anew."""
_BOTH = 1 - 2**32
"""``lo + hi`` is ``d + _BOTH hi``: beside the words themselves nothing but ``hi`` is needed of each."""


def count_words(size: int) -> int:
    """How many numbers so many bytes take."""
    return size // 8 * 2 + size % 8


def add_words(data: Tensor, first: int, total: Tensor) -> None:
    """Add to ``total`` (int64) the weighted sum of ``data`` (uint8 of one dimension, dense), whose words are numbered from ``first``."""
    if data.storage_offset() % 8:
        data = data.clone()  # a view as int64 begins at a multiple of 8
    words, behind = torch.split(data, [data.numel() // 8 * 8, data.numel() % 8])
    words = words.view(torch.int64)
    rows = words.numel() // _COLUMNS
    rectangle, rest = torch.split(words, [rows * _COLUMNS, words.numel() - rows * _COLUMNS])
    if rows:
        total += _of_rectangle(rectangle.view(rows, _COLUMNS), first)
    if rest.numel():
        total += _of_row(rest, first + 2 * rectangle.numel())
    if behind.numel():
        total += (behind * _weights(first + 2 * words.numel(), behind.numel(), 1, data)).sum()


def _of_rectangle(d_RC: Tensor, first: int) -> Tensor:
    """Weights are a row's and a column's: sums over rows and over columns are enough, and no table of weights is needed."""
    rows, columns = d_RC.shape
    at_once = min(rows, _ROWS) if d_RC.device.type == "cpu" else rows
    hi_R, hi_C, buffer = d_RC.new_empty(rows), d_RC.new_zeros(columns), d_RC.new_empty(at_once, columns)
    for d, sums in zip(torch.split(d_RC, at_once), torch.split(hi_R, at_once), strict=True):
        hi = torch.bitwise_right_shift(d, 32, out=buffer[: len(d)])
        torch.sum(hi, 1, out=sums)
        hi_C += hi.sum(0)
    both_R = d_RC.sum(1).add_(hi_R, alpha=_BOTH)
    both_C = d_RC.sum(0).add_(hi_C, alpha=_BOTH)
    of_rows = both_R * _weights(first, rows, 2 * columns, d_RC)
    of_columns = both_C * (_weights(0, columns, 2, d_RC) - 1)
    return of_rows.sum() + of_columns.sum() + hi_R.sum() * 2


def _of_row(d_C: Tensor, first: int) -> Tensor:
    hi_C = d_C >> 32
    both_C = d_C.add(hi_C, alpha=_BOTH)
    return (both_C * _weights(first, d_C.numel(), 2, d_C)).add_(hi_C, alpha=2).sum()


def _weights(first: int, count: int, step: int, like: Tensor) -> Tensor:
    """``2 k + 1`` of every ``step``-th word."""
    return torch.arange(2 * first + 1, 2 * (first + count * step) + 1, 2 * step, device=like.device)
