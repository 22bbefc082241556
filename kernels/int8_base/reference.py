"""A base in 8 bits in torch: the specification. Shape letters as in the package.

For each row and group of channels, in float32::

    scale = max(max|x|, 2**-100) / 127          the division correctly rounded, then cut to 16 bits
    q     = round(x / scale)                    the division correctly rounded, then to the nearest, ties to even
    value = q * scale                           exact in float32, then rounded to the dtype of the buffer

Maximum, division, rounding to whole numbers: each has one right result, whatever the device and the order. In float32 a second round changes nothing.

Example: (0, 1, -2) has ``scale = 2 / 127`` cut to 0.015748024, q = (0, 64, -127) and the values (0, 1.0078735, -1.9999990).

A group with NaN or an infinity has the scale NaN and q = 0, and is NaN as a whole, until a key frame replaces it.
"""

from __future__ import annotations

from torch import Tensor

from ..explicit_rounding.reference import short_scale

LIMIT = 127.0


def dequantise(base_NC: Tensor, scales_NG: Tensor, out_NC: Tensor) -> None:
    """``value``, into ``out_NC``."""
    groups = (*scales_NG.shape, base_NC.shape[1] // scales_NG.shape[1])
    out_NC.view(groups).copy_(base_NC.view(groups).float() * scales_NG[..., None])


def requantise(x_NC: Tensor, base_NC: Tensor, scales_NG: Tensor) -> None:
    """``q`` and ``scale``, into the base and its scales."""
    groups = (*scales_NG.shape, base_NC.shape[1] // scales_NG.shape[1])
    x = x_NC.view(groups).float()
    scale = short_scale(x.abs().amax(-1), LIMIT)
    scales_NG.copy_(scale)
    base_NC.view(groups).copy_((x / scale[..., None]).nan_to_num_(nan=0.0).round_())
