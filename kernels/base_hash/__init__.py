"""A 64-bit hash of the bases of residuals, cheap enough for every transfer: on the device where they lie, and nobody waits for it.

The words of all tensors are numbered through, and the hash is a weighted sum of them: formula and proof in :mod:`.reference`. Sums of integers are the same in any
order, so every device makes the same bits. It is made against accidents and not against an adversary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..choice import runs_triton
from . import reference

__all__ = ["checksum_of", "hash_of"]

_MULTIPLIER = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio, odd: multiplication by it is a permutation of 64-bit words."""


def hash_of(tensors: Sequence[Tensor]) -> Tensor:
    """int64 of no dimension, on their device: the same for the same bits in tensors of the same sizes; 0 of no tensors.

    Up to 8 GiB in all, one wrong word of 32 bits always changes it, and so do two wrong bits, wherever they are, and two words in each other's place. Anything else
    does with near certainty: two tensors in each other's place, and where one ends, are among it.

    The Triton kernel takes what lies on CUDA, where triton is installed, and begins at a multiple of 8 bytes, as every allocation does.

    Args:
        tensors: dense, of any dtypes and shapes, on one device.

    Raises:
        ValueError: they are on several devices.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"Give tensors of one device, not of {', '.join(sorted(map(str, devices)))}.")
    # A fill, where a copy from the host would wait.
    total = torch.full((), _of_sizes(tensors), dtype=torch.int64, device=next(iter(devices), None))
    first = 0
    for tensor in tensors:
        data = tensor.reshape(-1).view(torch.uint8)
        if runs_triton(data) and data.data_ptr() % 8 == 0:
            from .triton import add_words as add

            add(data, first, total)
        else:
            reference.add_words(data, first, total)
        first += reference.count_words(data.numel())
    return total


def checksum_of(tensor: Tensor) -> Tensor:
    """int64 of no dimension: the sum of a dense tensor's words of 64 bits, and of the bytes behind the last, modulo 2**64.

    A tenth of a hash on a CPU. One wrong word always changes it; of two the differences may cancel, and a word's place does not matter. For what does not last: what is made
    of it is hashed one call later.
    """
    data = tensor.reshape(-1).view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()
    words, behind = torch.split(data, [data.numel() // 8 * 8, data.numel() % 8])
    return words.view(torch.int64).sum() + behind.sum()


def _of_sizes(tensors: Sequence[Tensor]) -> int:
    """A number for how many bytes each has, known without their device. Signed, of 64 bits."""
    number = 0
    for tensor in tensors:
        number = number * _MULTIPLIER + tensor.nbytes + 1
    return (number + 2**63) % 2**64 - 2**63
