"""8-bit head rows in torch: the specification. Shape letters as in the package.

A head row ``x`` (one token, one head, ``D`` numbers) becomes ``D`` bytes and one float32, little endian, right after them::

    scale = max(max|x|, 2**-100) / limit        limit: 448 for fp8 (e4m3), 127 for int8
    payload = round(x * (1 / scale))            to the nearest of the format, ties to even; int8 in two's complement
    decoded = payload * scale                   in float32, then rounded to the dtype of the tensor

Example: the row (0, 1, -2) in int8 has ``scale = 2 / 127`` and the payload (0, 64, -127): 1 / scale = 63.5 goes to the even 64. It decodes to
(0, 1.00787, -2). A row of zeros decodes to zeros. **A row with NaN or an infinity decodes to NaN as a whole**: its scale is NaN, its payload zeros;
one bad number must not come out as a plausible row.

The format of cache-dit and LightX2V (per token and head, scale inline); the scale travels with its row, so that ranks with maxima of any
ratio decode the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .formats import LEAST_MAXIMUM, LIMITS, RAW, heads_of, piece_bytes, token_bytes

PAYLOAD = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def pack_quantised(tensors: Sequence[Tensor], forms: Sequence[str], parts: int) -> Tensor:
    """T x ``[B, n, H, D]`` of one dtype -> uint8 ``[P, n, R]``.

    A token of a part holds one section a tensor, in their order; a section holds the head rows ``[B, h]``. Raw rows are copied bit for bit.
    """
    B, n, H, D = tensors[0].shape
    h, dtype = H // parts, tensors[0].dtype
    packed = tensors[0].new_empty(parts, n, token_bytes(forms, B * h, D, dtype), dtype=torch.uint8)
    for x_BnHD, form, section in zip(tensors, forms, _sections(packed, forms, B, D, dtype), strict=True):
        x_PnBhD = x_BnHD.view(B, n, parts, h, D).permute(2, 1, 0, 3, 4)
        if form == RAW:
            section.copy_(x_PnBhD.contiguous().view(torch.uint8))
        else:
            payload, scale = quantise(x_PnBhD, form)
            section[..., :D].copy_(payload.view(torch.uint8))
            section[..., D:].copy_(scale.view(torch.uint8))
    return packed


def unpack_quantised(
    packed_PnR: Tensor, forms: Sequence[str], *, batch: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The inverse permutation of :func:`pack_quantised`, fused with the decoding: T x ``[B, n, H, D]``, contiguous."""
    parts, n, size = packed_PnR.shape
    h = heads_of(size, forms, batch, head_dim, dtype)
    tensors = []
    for form, section in zip(forms, _sections(packed_PnR, forms, batch, head_dim, dtype), strict=True):
        out = packed_PnR.new_empty(batch, n, parts * h, head_dim, dtype=dtype)
        # contiguous(): a view as wider numbers needs aligned rows, and an odd head_dim has none.
        if form == RAW:
            rows = section.clone(memory_format=torch.contiguous_format).view(dtype)
        else:
            scale = section[..., head_dim:].clone(memory_format=torch.contiguous_format).view(torch.float32)
            rows = dequantise(section[..., :head_dim].view(PAYLOAD[form]), scale)
        out.view(batch, n, parts, h, head_dim).permute(2, 1, 0, 3, 4).copy_(rows)
        tensors.append(out)
    return tuple(tensors)


def quantise(x: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """``[..., D]`` -> payload ``[..., D]`` and float32 scale ``[..., 1]``."""
    precise = x.float()
    greatest = precise.abs().amax(-1, keepdim=True)
    is_good = greatest.isfinite()
    scale = torch.where(is_good, greatest.clamp_min(LEAST_MAXIMUM) / LIMITS[form], torch.nan)
    # NaN in every place of a bad row: neither format's cast defines what becomes of it.
    values = (precise * scale.reciprocal()).nan_to_num_(nan=0.0)
    return (values.round_() if form == "int8" else values).to(PAYLOAD[form]), scale


def dequantise(payload: Tensor, scale: Tensor) -> Tensor:
    """``[..., D]`` float32."""
    if payload.dtype == torch.float8_e4m3fn and payload.device.type == "cpu":
        # torch converts these one by one there: a table of all 256 is four times faster, and the same numbers.
        table = torch.arange(256, dtype=torch.uint8).view(payload.dtype).float()
        numbers = table.index_select(0, payload.view(torch.uint8).flatten().int()).view(payload.shape)
    else:
        numbers = payload.float()
    return numbers.mul_(scale)


def _sections(packed_PnR: Tensor, forms: Sequence[str], batch: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    """Views ``[P, n, B, h, bytes of a head row]``, one for each tensor."""
    pieces = [piece_bytes(form, head_dim, dtype) for form in forms]
    parts, n, size = packed_PnR.shape
    heads = size // sum(pieces)  # of all batch rows
    views, start = [], 0
    for piece in pieces:
        section = packed_PnR.narrow(2, start, heads * piece)
        views.append(section.view(parts, n, batch, heads // batch, piece))
        start += heads * piece
    return views
