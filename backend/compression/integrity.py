"""A 64-bit hash of tensors, cheap enough for every transfer: on the device where they lie, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64
"""2**64 over the golden ratio, odd, as a signed number: multiplication by it is a permutation of 64-bit words."""
_COLUMNS = 1024


def hash_of(tensors: Sequence[Tensor]) -> Tensor:
    """int64 of no dimension: the same for the same bits, of dense tensors of one device.

    ``sum over i of word[i] * (2 i + 1)`` over 32-bit words (bytes, behind the last whole one), modulo 2**64; tensors are combined in their order. One wrong
    word always changes it, and so do two wrong bits wherever they are, and two words in each other's place; anything else does with near certainty. With
    words of 64 bits, two wrong ones whose highest bits flipped would leave it as it was. It is made against accidents and not against an adversary.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device if tensors else None)
    for number, tensor in enumerate(tensors):
        total = total * _MULTIPLIER + _hash_of_one(tensor) + number
    return total


def _hash_of_one(tensor: Tensor) -> Tensor:
    """With ``i = 1024 row + column`` the sum is one over sums of rows and one over sums of columns: no table of weights is needed."""
    data = tensor.reshape(-1).view(torch.uint8)
    whole = data.numel() // 4 * 4
    words = torch.cat((data[:whole].view(torch.int32).long(), data[whole:].long()))
    rows = words.numel() // _COLUMNS
    square, rest = torch.split(words, [rows * _COLUMNS, words.numel() - rows * _COLUMNS])
    square = square.view(rows, _COLUMNS)
    return (
        (square.sum(1) * _odd(0, rows, _COLUMNS, words)).sum()
        + (square.sum(0) * (_odd(0, _COLUMNS, 1, words) - 1)).sum()
        + (rest * _odd(rows * _COLUMNS, rest.numel(), 1, words)).sum()
    )


def _odd(start: int, count: int, step: int, like: Tensor) -> Tensor:
    """``2 i + 1`` of so many places."""
    return torch.arange(count, device=like.device) * (2 * step) + (2 * start + 1)
