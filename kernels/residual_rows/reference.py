"""Residuals in 4 or 8 bits in torch: the specification. Shape letters as in the package.

A head row (one token, one head) of ``r = x - base`` in float32, or of x itself in a key frame, becomes its payload and one float32, little endian, behind it::

    scale   = max(max|r|, 2**-100) / limit      cut to 16 bits; limit: 448 for fp8 (e4m3), 127 for int8, 7 for int4
    payload = round(r * (1 / scale))            to the nearest of the format, ties to even; integers in two's complement
    decoded = payload * scale                   in float32, and exact there: no compiler can round it differently
    base'   = base + decoded                    in float32, rounded once, to the dtype of the base; in a key frame decoded alone

and both ends do the last two lines. In int4 a byte holds an even channel (low half) and the odd one after it.

Example: ``base = (1, 1, 1)``, ``x = (1, 2, -1)`` in int4: r = (0, 1, -2), scale = 2 / 7 cut to 0.28571320, payload (0, 4, -7), bytes 0x40 0x09, and
``base' = (1, 2.1428528, -0.9999924)``.

**A row with a number that is not finite is broken**: its scale is NaN, its payload zeros, and in the base it becomes NaN as a whole, until a key frame
replaces it. Rows, bytes and NaN are those of :mod:`tutti.kernels.row_quantise`, but for the cut of the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..explicit_rounding.reference import short_scale
from ..row_quantise.formats import SCALE_BYTES
from ..row_quantise.reference import PAYLOAD, dequantise
from .formats import LIMITS


def encode(x_NHD: Tensor, base_NHD: Tensor, form: str, payload_out: Tensor, is_key: bool) -> None:
    """Write the payload ``[N, H, bytes]`` and update the base."""
    residual = x_NHD.float() if is_key else x_NHD.float() - base_NHD.float()
    scale = short_scale(residual.abs().amax(-1, keepdim=True), LIMITS[form])
    # NaN in every place of a broken row: no format's cast defines what becomes of it.
    values = (residual * scale.reciprocal()).nan_to_num_(nan=0.0)
    payload_out[..., :-SCALE_BYTES].copy_(_bytes(values, form))
    payload_out[..., -SCALE_BYTES:].copy_(scale.view(torch.uint8))
    decode(payload_out, base_NHD, form, is_key)


def decode(payload: Tensor, base_NHD: Tensor, form: str, is_key: bool) -> None:
    """Update the base as :func:`encode` did."""
    codes, scale = payload[..., :-SCALE_BYTES], scales_of(payload)
    if form == "int4":
        halves = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)[..., : base_NHD.shape[-1]]
        decoded = dequantise((halves.to(torch.int8) ^ 8) - 8, scale)
    else:
        decoded = dequantise(codes.view(PAYLOAD[form]), scale)
    base_NHD.copy_(decoded if is_key else decoded.add_(base_NHD))


def scales_of(payload: Tensor) -> Tensor:
    """``[N, H, 1]`` float32."""
    # A copy: a view as wider numbers needs aligned rows, and an odd head_dim has none.
    return payload[..., -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)


def _bytes(values: Tensor, form: str) -> Tensor:
    if form == "fp8":
        return values.to(PAYLOAD[form]).view(torch.uint8)
    whole = values.round_().to(torch.int8).view(torch.uint8)
    if form == "int8":
        return whole
    halves = pad(whole & 15, (0, whole.shape[-1] % 2))
    return halves[..., ::2] | (halves[..., 1::2] << 4)
