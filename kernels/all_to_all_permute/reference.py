"""The order of the Ulysses all-to-all in torch: the specification. Shape letters as in the package."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def pack_heads(tensors: Sequence[Tensor], parts: int) -> Tensor:
    """T x ``[B, n, H, D]`` of one dtype -> ``[P, n, T, B, h, D]``, contiguous: ``packed[p, t, i, b, j] = tensors[i][b, t, p h + j]``.

    A row of the exchange is a token, so that what arrives from several ranks lies one after the other in token order.
    """
    B, n, H, D = tensors[0].shape
    packed = tensors[0].new_empty(parts, n, len(tensors), B, H // parts, D)
    for i, x_BnHD in enumerate(tensors):
        packed[:, :, i].copy_(x_BnHD.view(B, n, parts, H // parts, D).permute(2, 1, 0, 3, 4))
    return packed


def unpack_heads(packed_PnTBhD: Tensor) -> tuple[Tensor, ...]:
    """The inverse of :func:`pack_heads`. With one part: views, because there is nothing to gather."""
    parts = packed_PnTBhD.shape[0]
    if parts == 1:
        return packed_PnTBhD[0].permute(1, 2, 0, 3, 4).unbind(0)
    return tuple(
        packed_PnTBhD[:, :, i].permute(2, 1, 0, 3, 4).flatten(2, 3).contiguous() for i in range(packed_PnTBhD.shape[2])
    )
