"""Codes of one to two bits in torch: the specification. Shape letters as in the package.

A residual ``r = x - base`` (in float32) is coded against the scale of its row and channel; the constants are those of the format::

    s[n, c]   = half(u[n] * v[c])               half: rounded to fp16, saturating
    is far    = |r| > threshold * s             in float32
    code      = 2 values:  r >= 0
                3 values:  0 for -far, 1 for zero, 2 for +far
                4 values:  2 * (r >= 0) + is far
    byte      = sum of code[i] * radix**i       the codes of neighbouring channels, the first one's the least
    decoded d = +-half(level * s)
    base'     = base + d                        in float32, rounded once, to the dtype of the base

and both ends do the last two lines, so that their bases stay the same bits. The scales are statistics of a residual, accumulated in float32::

    v[c] = mean over n of |r|
    u[n] = mean over c of |r| / max(mean |r|, 2**-100)

Magnitudes beyond fp16's range count as its greatest number. A residual of zeros has scales of zero and leaves the base as it is.

Example: ``base = 0``, ``x = (3, -1)`` and ``u = 1``, ``v = (2, 2)`` give the binary codes (1, 0), the byte 1, and ``base' = (2, -2)``; the next residual is
(1, 1): what was not sent comes again, which is all that error feedback is.

**Numbers of r that are not finite count as 0, and their row is broken**: its next u is NaN, and NaN it becomes as a whole in the base, here and wherever a
payload with that NaN is decoded. No broken row turns plausible, and no other row is touched. A row that is NaN stays NaN, until a key frame replaces it.

Source: the separable scale and the recursion are CompactFusion's (arXiv:2507.17511); the recursion is EF21's (arXiv:2106.05203).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..explicit_rounding import HALF_MAX
from ..explicit_rounding.reference import half
from .formats import FORMS, LEAST_MEAN, Form


def scales(x_NC: Tensor, base_NC: Tensor) -> tuple[Tensor, Tensor]:
    """The statistics of a residual: u ``[N]`` and v ``[C]``, fp16."""
    return _statistics(*_residual(x_NC, base_NC))


def encode(
    x_NC: Tensor, base_NC: Tensor, u_N: Tensor, v_C: Tensor, form: str, codes_out: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the codes ``[N, ceil(C / k)]`` and update the base; u and v of this very residual."""
    residual, is_broken = _residual(x_NC, base_NC)
    is_broken |= u_N.isnan()
    scale = _scale(u_N, v_C)
    codes = _codes(residual, scale, FORMS[form])
    codes_out.copy_(_pack(codes, FORMS[form]))
    _add(base_NC, codes, scale, FORMS[form], is_broken)
    return _statistics(residual, is_broken)


def decode(codes: Tensor, u_N: Tensor, v_C: Tensor, base_NC: Tensor, form: str, next_u_N: Tensor) -> None:
    """Update the base as :func:`encode` did; ``next_u_N``: the u that it returned, or u again."""
    digits = _unpack(codes, base_NC.shape[1], FORMS[form])
    _add(base_NC, digits, _scale(u_N, v_C), FORMS[form], u_N.isnan() | next_u_N.isnan())


def _residual(x_NC: Tensor, base_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Float32, zero where it would not be finite; and which rows have such a number."""
    residual = x_NC.float() - base_NC.float()
    is_good = residual.isfinite()
    return torch.where(is_good, residual, 0.0), ~is_good.all(1)


def _statistics(residual: Tensor, is_broken: Tensor) -> tuple[Tensor, Tensor]:
    magnitude = residual.abs().clamp_max_(HALF_MAX)
    rows = max(magnitude.shape[0], 1)
    of_rows = magnitude.mean(1)
    mean = (of_rows.sum() / rows).clamp_min(LEAST_MEAN)
    u = torch.where(is_broken, torch.nan, (of_rows / mean).clamp_max(HALF_MAX))
    return u.half(), (magnitude.sum(0) / rows).clamp_max(HALF_MAX).half()


def _scale(u_N: Tensor, v_C: Tensor) -> Tensor:
    """Zero in rows whose u is NaN, for codes that are defined; their base is NaN whatever these are."""
    u = torch.where(u_N.isnan(), 0.0, u_N.float())
    return half(u[:, None] * v_C.float())


def _codes(residual: Tensor, scale: Tensor, form: Form) -> Tensor:
    is_positive, is_far = residual >= 0, residual.abs() > form.threshold * scale
    if form.radix == 2:
        return is_positive.to(torch.uint8)
    if form.radix == 3:
        return torch.where(is_far, 2 * is_positive.to(torch.uint8), 1)
    return 2 * is_positive.to(torch.uint8) + is_far


def _add(base_NC: Tensor, codes: Tensor, scale: Tensor, form: Form, is_broken: Tensor) -> None:
    is_positive = codes >= (2 if form.radix > 2 else 1)
    is_far = codes != 1 if form.radix == 3 else (codes & 1).bool()
    magnitude = torch.where(is_far, half(form.far * scale), half(form.near * scale))
    # Not -magnitude, which makes -0 of 0: there is one zero only, in Triton too.
    decoded = torch.where(is_positive, magnitude, 0.0 - magnitude)
    base_NC.copy_(torch.where(is_broken[:, None], torch.nan, base_NC.float() + decoded))


def _pack(codes: Tensor, form: Form) -> Tensor:
    """``[N, C]`` -> ``[N, ceil(C / k)]``."""
    k = form.codes_per_byte
    padded = pad(codes, (0, -codes.shape[1] % k))
    return (padded.view(len(codes), padded.shape[1] // k, k) * _places(form, codes)).sum(2, dtype=torch.uint8)


def _unpack(codes: Tensor, channels: int, form: Form) -> Tensor:
    """``[N, ceil(C / k)]`` -> ``[N, C]``."""
    digits = (codes[..., None] // _places(form, codes)) % form.radix
    return digits.flatten(1)[:, :channels]


def _places(form: Form, like: Tensor) -> Tensor:
    return (form.radix ** torch.arange(form.codes_per_byte, device=like.device)).to(torch.uint8)
