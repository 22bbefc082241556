"""The kernel of low-rank residuals in Triton's interpreter against its reference; started with TRITON_INTERPRET=1. Prints case -> figures."""

from __future__ import annotations

import json

import torch
from torch import Tensor
from tutti.kernels.low_rank import reference
from tutti.kernels.low_rank import triton as kernel

from tests.support.bits import same_bits
from tests.unit.kernels.heads import DTYPES
from tests.unit.kernels.residuals import SHAPES, generator


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """To the dtype as the interpreter rounds: it cuts float32 to bfloat16, where a GPU rounds to nearest as torch does."""
    return (
        (exact.view(torch.int32) & ~0xFFFF).view(torch.float32).to(dtype)
        if dtype == torch.bfloat16
        else exact.to(dtype)
    )


def added(name: str, dtype: torch.dtype) -> dict[str, bool]:
    N, C, rank = SHAPES[name]
    R = min(N, C, rank)
    payload = reference.pack(draw(N, R, seed=1), 3 * draw(C, R, seed=2))
    base = draw(N, C, seed=3).to(dtype)
    expected = base.to(torch.float32, copy=True)
    reference.add_decoded(payload, expected)
    got, flipped, at_odd_byte, broken = (base.clone() for _ in range(4))
    kernel.add_decoded(payload, got)
    other = payload.clone()
    if R:
        other[-1] ^= 1
    kernel.add_decoded(other, flipped)
    kernel.add_decoded(torch.cat([payload[:1], payload])[1:], at_odd_byte)
    bad_u = draw(N, R, seed=1)
    bad_u[:1, :1] = torch.inf
    kernel.add_decoded(reference.pack(bad_u, draw(C, R, seed=2)), broken)
    return {
        "same bits": same_bits(got, rounded(expected, dtype)),
        "same bits at an odd byte": same_bits(at_odd_byte, got),
        "same bits of another payload": same_bits(flipped, got),
        "broken is NaN": bool(broken.isnan().all()),
    }


def main() -> None:
    print(json.dumps({f"{name} {short}": added(name, dtype) for name in SHAPES for short, dtype in DTYPES.items()}))


if __name__ == "__main__":
    main()
