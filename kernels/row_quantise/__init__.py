"""8-bit head rows with their scale inline, quantised on the way into the buffer of the Ulysses all-to-all and dequantised on the way out.

Shape letters: B batch, n tokens, H heads, P parts (ranks that get a share of the heads), h = H / P, D head_dim, R bytes of a token in a part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..choice import runs_triton
from . import reference
from .formats import LIMITS, RAW, piece_bytes, token_bytes, why_not_on

__all__ = ["LIMITS", "RAW", "pack_quantised", "piece_bytes", "token_bytes", "unpack_quantised", "why_not_on"]


def pack_quantised(tensors: Sequence[Tensor], forms: Sequence[str], parts: int) -> Tensor:
    """T x ``[B, n, H, D]`` -> uint8 ``[P, n, R]``, tensor i in ``forms[i]``: ``fp8``, ``int8`` or ``raw``; see :func:`.reference.pack_quantised`.

    The Triton kernel (one launch for all tensors, three at most) runs on CUDA where triton is installed and the last dimension is dense.

    Raises:
        ValueError: a form is none of these, or the GPU has no such numbers.
    """
    _check(forms, tensors[0])
    dense = len(tensors) <= 3 and all(x.stride(-1) == 1 for x in tensors)
    if dense and runs_triton(*tensors):
        from .triton import pack_quantised as pack

        return pack(tensors, forms, parts)
    return reference.pack_quantised(tensors, forms, parts)


def unpack_quantised(
    packed_PnR: Tensor, forms: Sequence[str], *, batch: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The way back, T x ``[B, n, H, D]`` contiguous in ``dtype`` (that of what was packed); see :func:`.reference.unpack_quantised`.

    The Triton kernel runs on CUDA where triton is installed, for at most three tensors.

    Raises:
        ValueError: a form is none of these, the GPU has no such numbers, or the bytes are not those of whole head rows.
    """
    _check(forms, packed_PnR)
    if len(forms) <= 3 and runs_triton(packed_PnR):
        from .triton import unpack_quantised as unpack

        return unpack(packed_PnR, forms, batch=batch, head_dim=head_dim, dtype=dtype)
    return reference.unpack_quantised(packed_PnR, forms, batch=batch, head_dim=head_dim, dtype=dtype)


def _check(forms: Sequence[str], where: Tensor) -> None:
    for form in forms:
        if form != RAW and form not in LIMITS:
            raise ValueError(f"Take a form of {RAW}, {', '.join(LIMITS)}: {form!r} is none of them.")
        # Not only for the kernel: that one GPU emulates what another lacks would hide which codec fits the group.
        if where.is_cuda and (why := why_not_on(form, torch.cuda.get_device_capability(where.device))):
            raise ValueError(why)
