"""The rotation's kernel in Triton's interpreter against its reference; started with TRITON_INTERPRET=1. Prints case -> figures."""

from __future__ import annotations

import itertools
import json

import torch
from tutti.kernels.hadamard import reference
from tutti.kernels.hadamard import triton as kernel

from tests.support.bits import same_bits
from tests.unit.kernels.heads import DTYPES
from tests.unit.kernels.interpreted_low_rank import draw, rounded

HEAD_DIMS = (1, 2, 5, 48, 64, 80, 96, 128, 256)


def rotated(head_dim: int, dtype: torch.dtype) -> dict[str, bool]:
    """Whether all four ways have the reference's bits, for rows that are no view of one another."""
    heads_first = draw(2, 3, 7, head_dim, seed=head_dim).to(dtype).transpose(1, 2)
    same, differ = True, False
    for flips, back in itertools.product((False, True), repeat=2):
        expected = rounded(reference.rotate(heads_first.float(), flips=flips, back=back), dtype)
        got = kernel.rotate(heads_first, flips=flips, back=back)
        same &= same_bits(got, expected) and got.is_contiguous()
        differ |= not same_bits(kernel.rotate(heads_first, flips=not flips, back=back), expected)
    return {
        "same bits": same,
        "flips differ": differ,
        "no row": kernel.rotate(heads_first[:0], flips=True, back=False).shape[0] == 0,
    }


def main() -> None:
    print(json.dumps({f"{D} {short}": rotated(D, dtype) for D in HEAD_DIMS for short, dtype in DTYPES.items()}))


if __name__ == "__main__":
    main()
