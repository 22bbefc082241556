"""Residuals in one to two bits a number, with a scale for each row times one for each channel.

Who sends ``r = x - base`` and who receives it add the same decoded numbers to the same base, which so stays the same bits on all ranks and never far
from x. A scale may be that of the residual before (*delayed*): then encoding needs one pass. Formats, formulas and what becomes of NaN: :mod:`.reference`.

    u, v = scales(x, base)                                        # once, after a key frame
    next_u, next_v = encode(x, base, u, v, form, codes)           # the payload: codes, next_u, next_v
    decode(codes, u, v, base, form, next_u=next_u)                # with the u and v of the payload before

Shape letters: N rows (tokens of all batch rows), C channels (heads times head_dim), k codes in a byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..choice import runs_triton
from . import reference
from .formats import FORMS, Form, code_bytes, payload_bytes, sections

__all__ = [
    "FORMS", "Form", "code_bytes", "decode", "encode", "has_broken_rows", "payload_bytes", "scales", "sections",
]  # fmt: skip


def scales(x_NC: Tensor, base_NC: Tensor) -> tuple[Tensor, Tensor]:
    """The statistics of ``x - base``: u ``[N]`` and v ``[C]``, fp16; u is NaN for rows where the residual is not finite.

    Args:
        x_NC: fp16, bf16 or fp32; rows may be strided, channels may not.
        base_NC: of one of these dtypes as well, contiguous.

    Raises:
        ValueError: shapes or strides are none of these.
    """
    _check(x_NC, base_NC)
    if runs_triton(x_NC, base_NC):
        from .triton import scales as measure

        return measure(x_NC, base_NC)
    return reference.scales(x_NC, base_NC)


def encode(
    x_NC: Tensor, base_NC: Tensor, u_N: Tensor, v_C: Tensor, form: str, codes_out: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the codes of ``x - base`` and add what they decode to, in one pass; returns what :func:`scales` would have.

    Args:
        x_NC, base_NC: as for :func:`scales`; the base is updated in place.
        u_N, v_C: fp16, of this residual or of the one before.
        form: one of :data:`FORMS`.
        codes_out: uint8 ``[N, ceil(C / k)]``, contiguous.

    Raises:
        ValueError: there is no such form, or shapes, dtypes or strides are none of these.
    """
    _check(x_NC, base_NC)
    _check_codes(codes_out, u_N, v_C, base_NC, form)
    if runs_triton(x_NC, base_NC, u_N, v_C, codes_out):
        from .triton import encode as encode_codes

        return encode_codes(x_NC, base_NC, u_N, v_C, form, codes_out)
    return reference.encode(x_NC, base_NC, u_N, v_C, form, codes_out)


def decode(
    codes: Tensor, u_N: Tensor, v_C: Tensor, base_NC: Tensor, form: str, *, next_u: Tensor | None = None
) -> None:
    """Add to the base, in place, what :func:`encode` added to its own: the same bits.

    Args:
        codes, u_N, v_C, base_NC, form: as for :func:`encode`.
        next_u: ``[N]`` fp16, the u that :func:`encode` returned, where ``u_N`` is an older one: a row that broke since is NaN only there. It must be
            given with delayed scales, or broken rows come out as plausible ones.

    Raises:
        ValueError: as for :func:`encode`.
    """
    _check_codes(codes, u_N, v_C, base_NC, form)
    _check_base(base_NC)
    next_u_N = u_N if next_u is None else next_u
    if runs_triton(codes, u_N, v_C, base_NC, next_u_N):
        from .triton import decode as decode_codes

        decode_codes(codes, u_N, v_C, base_NC, form, next_u_N)
    else:
        reference.decode(codes, u_N, v_C, base_NC, form, next_u_N)


def has_broken_rows(u_N: Tensor) -> Tensor:
    """Whether a payload makes a row NaN, and a key frame is due: bool ``[]`` on u's device, which nobody has waited for yet."""
    return u_N.isnan().any()


def _check(x_NC: Tensor, base_NC: Tensor) -> None:
    if x_NC.shape != base_NC.shape or x_NC.ndim != 2 or not x_NC.shape[1]:
        raise ValueError(f"Give x and its base as [N, C] alike, not {list(x_NC.shape)} and {list(base_NC.shape)}.")
    if x_NC.stride(1) != 1 and x_NC.numel() > len(x_NC):
        raise ValueError(f"Give x with dense channels: its strides are {x_NC.stride()}.")
    _check_base(base_NC)


def _check_base(base_NC: Tensor) -> None:
    if not base_NC.is_contiguous():
        raise ValueError(f"Give a contiguous base: its strides are {base_NC.stride()}.")


def _check_codes(codes: Tensor, u_N: Tensor, v_C: Tensor, base_NC: Tensor, form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"Take a form of {', '.join(FORMS)}: {form!r} is none of them.")
    rows, channels = base_NC.shape
    expected = (rows, code_bytes(form, channels))
    if codes.shape != expected or codes.dtype != torch.uint8 or not codes.is_contiguous():
        raise ValueError(f"Give contiguous uint8 codes {list(expected)}, not {codes.dtype} {list(codes.shape)}.")
    if (u_N.shape, v_C.shape) != ((rows,), (channels,)) or not u_N.dtype == v_C.dtype == torch.float16:
        raise ValueError(f"Give fp16 scales [{rows}] and [{channels}], not {list(u_N.shape)} and {list(v_C.shape)}.")
