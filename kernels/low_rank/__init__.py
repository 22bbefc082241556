"""Residuals as products of two thin factors with four bits a number: what is sent when almost nothing may be.

``factorise`` and ``pack`` run at the sender; ``add_decoded`` runs at **both ends**, on the same payload, and gives the same bits: bases that were equal stay
equal. That holds by the formula (:mod:`.reference`), for CPUs and GPUs, with and without fused multiply-adds, under any number of threads. Three
things are outside of it: devices that flush float32 subnormals to zero (of a base; no sum of products is one), the bits of a NaN, and broken
hardware. So whoever keeps bases still compares a hash of them.

Shape letters: N rows (tokens of all batch rows), C columns (heads x head_dim), R rank, n either of N and C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..choice import runs_triton
from . import reference
from .formats import RANK, payload_bytes, rank_in

__all__ = ["RANK", "add_decoded", "factorise", "is_broken", "pack", "payload_bytes"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def factorise(
    x: Tensor, base: Tensor, warm_q: Tensor | None = None, *, rank: int = RANK
) -> tuple[Tensor, Tensor, Tensor]:
    """``x - base ~ U V^T`` for ``[N, C]`` in float32, bfloat16 or float16; see :func:`.reference.factorise`.

    Returns float32 U ``[N, R]``, V ``[C, R]`` and the ``warm_q`` ``[C, R]`` of the next call, R being ``rank`` or less where N or C is less.

    At the sender only: the library's matrix products, whose last bits differ between machines.

    Raises:
        ValueError: the shapes do not fit together, or ``rank`` is less than one.
    """
    if x.ndim != 2 or x.shape != base.shape:
        raise ValueError(f"Give x and base as [N, C] alike: {list(x.shape)} and {list(base.shape)} are not.")
    if warm_q is not None and (warm_q.ndim != 2 or warm_q.shape[0] != x.shape[1] or warm_q.shape[1] > min(x.shape)):
        raise ValueError(
            f"Give warm_q as [C, R], R no more than N and C: {list(warm_q.shape)} does not fit x {list(x.shape)}."
        )
    return reference.factorise(x, base, warm_q, rank=rank)


def pack(u: Tensor, v: Tensor) -> Tensor:
    """U ``[N, R]``, V ``[C, R]`` -> uint8 ``[payload_bytes(N, C, R)]``, contiguous, to be sent as it is; see :func:`.reference.pack`.

    At the sender only, and small: factors are a hundredth of the residual.

    Raises:
        ValueError: these are no factors of one residual.
    """
    if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[1] or u.shape[1] > min(u.shape[0], v.shape[0]):
        raise ValueError(
            f"Give U [N, R] and V [C, R], R no more than N and C: {list(u.shape)} and {list(v.shape)} are not."
        )
    return reference.pack(u, v)


def is_broken(payload: Tensor) -> Tensor:
    """Whether what was packed had NaN, an infinity, or a number too large: then the next thing to send is a whole tensor.

    A bool of no dimension on the payload's device; at either end, before or after the payload is added.
    """
    return reference.is_broken(payload)


def add_decoded(payload: Tensor, base: Tensor) -> None:
    """``base += decode(payload)`` in place, for ``[N, C]`` contiguous in float32, bfloat16 or float16; see :func:`.reference.add_decoded`.

    The Triton kernel runs on CUDA where triton is installed, and gives the bits of the reference.

    Raises:
        ValueError: the base is no such tensor, or the payload is none for it.
    """
    if base.ndim != 2 or not base.is_contiguous() or base.dtype not in FLOATS:
        raise ValueError(
            f"Give a base [N, C], contiguous, of float32, bfloat16 or float16: {list(base.shape)} of {base.dtype} "
            f"with strides {base.stride()} is none."
        )
    if payload.dtype != torch.uint8 or payload.ndim != 1 or not payload.is_contiguous():
        raise ValueError(f"Give the payload as flat bytes: {list(payload.shape)} of {payload.dtype} is something else.")
    rank_in(payload.numel(), *base.shape)
    if runs_triton(payload, base):
        from .triton import add_decoded as add

        add(payload, base)
    else:
        reference.add_decoded(payload, base)
