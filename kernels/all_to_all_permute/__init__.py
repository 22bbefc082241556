"""Tokens for heads: the order in which the Ulysses all-to-all sends its rows, and the way back.

Shape letters: B batch, n tokens, H heads, P parts (ranks that get a share of the heads), h = H / P, D head_dim, T tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..choice import runs_triton
from . import reference


def pack_heads(tensors: Sequence[Tensor], parts: int) -> Tensor:
    """T x ``[B, n, H, D]`` -> ``[P, n, T, B, h, D]``, contiguous; see :func:`.reference.pack_heads`.

    The Triton kernel (one launch for all tensors, three at most) runs on CUDA where triton is installed and the last dimension is dense.
    """
    dense = len(tensors) <= 3 and all(x.stride(-1) == 1 for x in tensors)
    if dense and runs_triton(*tensors):
        from .triton import pack_heads as pack

        return pack(tensors, parts)
    return reference.pack_heads(tensors, parts)


def unpack_heads(packed_PnTBhD: Tensor) -> tuple[Tensor, ...]:
    """``[P, n, T, B, h, D]`` -> T x ``[B, n, H, D]``: the inverse. With one part these are strided views, and nothing is copied.

    The Triton kernel runs on CUDA where triton is installed, for at most three tensors and more than one part.
    """
    parts, _, count = packed_PnTBhD.shape[:3]
    if parts > 1 and count <= 3 and runs_triton(packed_PnTBhD):
        from .triton import unpack_heads as unpack

        return unpack(packed_PnTBhD)
    return reference.unpack_heads(packed_PnTBhD)
