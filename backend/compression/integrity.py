"""A 64-bit hash of tensors, cheap enough for every transfer: one pass, on the device where they lie, and nobody waits for it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64
"""2**64 over the golden ratio, odd, as a signed number: multiplication by it is a permutation of 64-bit words."""


def hash_of(tensors: Sequence[Tensor]) -> Tensor:
    """int64 of no dimension: the same for the same bits, of dense tensors of one device.

    The sum of all 64-bit words, each times an odd weight of its place, modulo 2**64. One wrong word always changes it; several do with near certainty, and so do
    words in each other's place. It is made against accidents and not against an adversary.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device if tensors else None)
    for number, tensor in enumerate(tensors):
        total = total * _MULTIPLIER + _hash_of_one(tensor) + number
    return total


def _hash_of_one(tensor: Tensor) -> Tensor:
    data = tensor.reshape(-1).view(torch.uint8)
    whole = data.numel() // 8 * 8
    words = data[:whole].view(torch.int64)
    total = (words * _weights(words.numel(), tensor.device)).sum()
    if whole < data.numel():  # seven bytes at most
        rest = data[whole:].to(torch.int64)
        total = total + (rest * _weights(rest.numel() + 1, tensor.device)[1:]).sum() * _MULTIPLIER
    return total


@functools.lru_cache(maxsize=8)
def _weights(words: int, device: torch.device) -> Tensor:
    """Odd numbers that differ."""
    return (torch.arange(words, dtype=torch.int64, device=device) * 2 + 1) * _MULTIPLIER
