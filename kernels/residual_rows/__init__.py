"""Residuals in 4 or 8 bits a number with one scale for each token and head, and the key frames that residuals start from.

Who sends and who receives add the same decoded numbers to the same base. Formats, formulas and what becomes of NaN: :mod:`.reference`.

Shape letters: N rows (tokens of all batch rows), H heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..choice import runs_triton
from ..row_quantise.formats import why_not_on
from . import reference
from .formats import LIMITS, payload_bytes, row_bytes

__all__ = ["LIMITS", "decode", "encode", "has_broken_rows", "payload_bytes", "row_bytes", "why_not_on"]


def encode(x_NHD: Tensor, base_NHD: Tensor, form: str, payload_out: Tensor, *, is_key: bool = False) -> None:
    """Write the payload of ``x - base``, or of x in a key frame, and add what it decodes to, or store it: in one pass.

    Args:
        x_NHD: fp16, bf16 or fp32; rows and heads may be strided, the last dimension may not.
        base_NHD: of one of these dtypes as well, contiguous; updated in place. In a key frame it is not read.
        form: one of :data:`LIMITS`.
        payload_out: uint8 ``[N, H, row_bytes(form, D)]``, contiguous.
        is_key: whether this is a key frame.

    Raises:
        ValueError: there is no such form or the GPU has no such numbers, or shapes, dtypes or strides are none of these.
    """
    _check(payload_out, base_NHD, form)
    if x_NHD.shape != base_NHD.shape or (x_NHD.stride(-1) != 1 and x_NHD.shape[-1] > 1):
        raise ValueError(
            f"Give x like its base {list(base_NHD.shape)}, dense in the last dimension: it is {list(x_NHD.shape)} with strides {x_NHD.stride()}."
        )
    if runs_triton(x_NHD, base_NHD, payload_out):
        from .triton import encode as encode_rows

        encode_rows(x_NHD, base_NHD, form, payload_out, is_key)
    else:
        reference.encode(x_NHD, base_NHD, form, payload_out, is_key)


def decode(payload: Tensor, base_NHD: Tensor, form: str, *, is_key: bool = False) -> None:
    """Do to the base, in place, what :func:`encode` did to its own: the same bits.

    Args:
        payload, base_NHD, form, is_key: as for :func:`encode`.

    Raises:
        ValueError: as for :func:`encode`.
    """
    _check(payload, base_NHD, form)
    if runs_triton(payload, base_NHD):
        from .triton import decode as decode_rows

        decode_rows(payload, base_NHD, form, is_key)
    else:
        reference.decode(payload, base_NHD, form, is_key)


def has_broken_rows(payload: Tensor) -> Tensor:
    """Whether a payload makes a row NaN, and a key frame is due: bool ``[]`` on its device, which nobody has waited for yet."""
    return reference.scales_of(payload).isnan().any()


def _check(payload: Tensor, base_NHD: Tensor, form: str) -> None:
    if form not in LIMITS:
        raise ValueError(f"Take a form of {', '.join(LIMITS)}: {form!r} is none of them.")
    # Not only for the kernel: that one GPU emulates what another lacks would hide which codec fits the group.
    if base_NHD.is_cuda and (why := why_not_on(form, torch.cuda.get_device_capability(base_NHD.device))):
        raise ValueError(why)
    if base_NHD.ndim != 3 or not base_NHD.is_contiguous() or not base_NHD.shape[-1]:
        raise ValueError(f"Give a contiguous base [N, H, D], not {list(base_NHD.shape)} with {base_NHD.stride()}.")
    expected = (*base_NHD.shape[:2], row_bytes(form, base_NHD.shape[2]))
    if payload.shape != expected or payload.dtype != torch.uint8 or not payload.is_contiguous():
        raise ValueError(
            f"Give a contiguous uint8 payload {list(expected)}, not {payload.dtype} {list(payload.shape)}."
        )
