"""The kernel of the hash of bases in Triton's interpreter against its reference; started with TRITON_INTERPRET=1. Prints case -> figures."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor
from tutti.kernels.base_hash import reference
from tutti.kernels.base_hash import triton as kernel

BLOCK_BYTES = 8 * kernel.WORDS
SIZES = (0, 1, 7, 8, 9, 100, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 8 * 384 + 13)
"""In bytes: no whole word, none behind, and one program, exactly one, and more."""
FIRST = (0, 1, 7, 2**31 - 5, 2**40)


def added(how: Callable[[Tensor, int, Tensor], None], data: Tensor, first: int) -> int:
    """To a sum that is not 0."""
    total = torch.full((), -(2**63) + 12345)
    how(data, first, total)
    return int(total)


def compared(size: int, first: int) -> dict[str, bool]:
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    expected = added(reference.add_words, data, first)
    flipped = [data.clone() for _ in range(2 * bool(size))]
    for place, other in zip((0, -1), flipped, strict=False):
        other[place] ^= 0x80
    return {
        "same": added(kernel.add_words, data, first) == expected,
        "same with a flipped bit": any(added(kernel.add_words, other, first) == expected for other in flipped),
        "same of the next numbers": added(kernel.add_words, data, first + 1) == expected,
    }


def main() -> None:
    print(json.dumps({f"{size} {first}": compared(size, first) for size in SIZES for first in FIRST}))


if __name__ == "__main__":
    main()
