"""Low-rank residuals with four-bit factors in torch: the specification. Shape letters as in the package.

The sender approximates ``x - base`` by ``U V^T`` and quantises every column of both factors by itself, zero counting as one of its numbers::

    scale   = (max - min) / 15                             to seven significant bits, upwards
    zero    = round(-min / scale), low = -zero * scale     exact in float16
    code    = round(value / scale) + zero                  0 to 15
    decoded = float16(code * scale + low)                  computed in float32
    base    = dtype(float32(base) + sum over k of U[n, k] * V[c, k])

Zero is a level, so that no number is off by more than itself: beside one channel a hundred times as large the others round to nothing, and are sent
later. Levels that begin at the minimum would add up to half such a step to every one of them, together more than they are, and at every call anew. And
rows that did not change stay as they are.

**Both ends add the same bits.** The sum runs over k = 0, 1, ... in float32, and nothing else in it rounds: a product of two float16 numbers has 22 bits
at most and is a multiple of 2**-48, so float32 holds it exactly, and a fused multiply-add gives what a product and a sum give. So does ``code * scale``,
which has 15 bits. No matrix product is involved, whose order depends on the library, the device and the number of threads: every element is
computed alone, in one order, by operations that IEEE 754 defines.

Example, rank 1: ``U = (0, 15, 3)``, ``V = (15, 0)``: both scales are 1, both lows 0, the codes those numbers. The payload is ``00 3c 00 00 00 3c 00 00``
(float16 1, 0, 1, 0), ``f0 03`` (U), ``0f`` (V), and what is added is ``(0, 0), (225, 0), (45, 0)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import COMPONENT_BYTES, GREATEST_CODE, RANK, SCALES, rank_in, rank_of

_SHIFT = 1e-12
"""Added to the unit diagonal of a Gram matrix in float64: far above its rounding (1e-14), far below what float32 columns can tell apart (1e-6, squared)."""
_GOLDEN = (5**0.5 - 1) / 2
_LEAST_MAXIMUM = 1e-30
"""Stands for a smaller maximum of a column, zero above all, where factors are balanced."""
_ROWS_AT_ONCE = 64
"""Of the base while components are added: a few hundred kilobytes, which stay in the cache."""


def factorise(
    x_NC: Tensor, base_NC: Tensor, warm_q_CR: Tensor | None = None, *, rank: int = RANK
) -> tuple[Tensor, Tensor, Tensor]:
    """``x - base ~ U V^T``, by subspace iteration in float32: U ``[N, R]``, V ``[C, R]`` and the next call's start Q ``[C, R]``.

    ``U = orth((x - base) Q)``, ``V = (x - base)^T U``, next ``Q`` the columns of ``V`` at unit length: one such iteration from ``warm_q``, two from a fixed
    start without it. ``rank`` counts only then, and is cut to N and C. ``U U^T`` never lengthens a vector, so neither does a
    residual grow by being sent.

    A column that found nothing keeps its old start: a residual of zeros, which gives zeros, must not end the search for good. So does a residual with
    NaN or an infinity, whose U is NaN as a whole: :func:`pack` marks the payload.

    Only the sender runs this, so its bits may depend on the machine, and matrix products are the library's.

    Source: PowerSGD (Vogels, Karimireddy & Jaggi 2019, arXiv:1905.13727, algorithm 1 and its warm start).
    """
    residual_NC = x_NC.float() - base_NC.float()
    (N, C), is_cold = x_NC.shape, warm_q_CR is None
    q_CR = start(N, C, rank, x_NC.device) if warm_q_CR is None else warm_q_CR.float()
    is_good = residual_NC.sum().isfinite()
    for _ in range(2 if is_cold else 1):
        u_NR = orthonormalise(residual_NC @ q_CR)
        v_CR = residual_NC.mT @ u_NR
        next_CR = torch.nn.functional.normalize(v_CR, dim=0)
        found = is_good & next_CR.isfinite().all() & next_CR.any(0)
        q_CR = torch.where(found, next_CR, q_CR)
    return torch.where(is_good, u_NR, torch.nan), v_CR, q_CR


def start(rows: int, columns: int, rank: int, device: torch.device) -> Tensor:
    """The Q that a first call begins with, ``[C, R]``: a fixed pattern, for which no generator's state is touched.

    ``cos(2 pi g i**2)`` over all elements i, g the golden ratio: such phases are spread evenly (Weyl 1916), and columns are as good as random to one another.
    """
    width = rank_of(rank, rows, columns)
    # float64: the squares go up to 10**12, and their fraction counts.
    i = torch.arange(columns * width, device=device, dtype=torch.float64)
    return torch.cos(2 * torch.pi * (i * i * _GOLDEN).frac()).float().view(columns, width)


def orthonormalise(a_NR: Tensor) -> Tensor:
    """Orthonormal columns that span those of ``a``, in its dtype: ``A L^-T`` with ``L L^T`` the Cholesky factors of ``A^T A``.

    One pass with the small products in float64, after every column has been brought to unit length: right where columns depend on one
    another down to 1e-6, and whatever TF32 is allowed to do to float32. Columns that depend on others still more come out short, never longer than one and
    never NaN; columns of zeros stay zeros.

    Source: mixed-precision Cholesky QR (Yamazaki, Tomov & Dongarra 2015, SIAM J. Sci. Comput. 37), shifted as by Fukaya et al. 2020 (SIAM J. Sci. Comput. 42).
    """
    unit_NR = torch.nn.functional.normalize(a_NR.double(), dim=0, eps=torch.finfo(torch.float64).tiny)
    gram_RR = unit_NR.mT @ unit_NR
    gram_RR.diagonal().add_(_SHIFT)
    # _ex does not look whether it worked, for which it would have to wait for a GPU. NaN, of which it would not, shows in the result.
    lower_RR = torch.linalg.cholesky_ex(gram_RR).L
    orthonormal_NR: Tensor = torch.linalg.solve_triangular(lower_RR.mT, unit_NR, upper=True, left=False)
    return orthonormal_NR.to(a_NR.dtype)


def pack(u_NR: Tensor, v_CR: Tensor) -> Tensor:
    """U ``[N, R]``, V ``[C, R]`` -> uint8 ``[payload_bytes(N, C, R)]``; :mod:`.formats` tells the sections.

    Before quantising, column k of U is multiplied, and that of V divided, by what makes their greatest magnitudes equal: the product stays, and both fit
    into float16 unless their product exceeds 4e9. Below 1e-9 it loses precision, below 4e-15 it is lost.

    **Where a number is not finite or does not fit, all scales of U are NaN**: a product spreads one bad number over everything, so
    nothing must come out that looks like a residual.
    """
    if not u_NR.shape[1]:
        return u_NR.new_empty(0, dtype=torch.uint8)
    # The root of each before the quotient, which could overflow.
    greatest_u, greatest_v = (x.float().abs().amax(0).clamp_min(_LEAST_MAXIMUM).sqrt() for x in (u_NR, v_CR))
    balance = greatest_v / greatest_u
    factors = [_quantise(u_NR.float() * balance), _quantise(v_CR.float() / balance)]
    fits = torch.stack([fits for _, _, fits in factors]).all()
    scales_4R = torch.cat([scales for scales, _, _ in factors])
    scales_4R[0] = torch.where(fits, scales_4R[0], torch.nan)
    codes = [_two_a_byte(codes_Rn).flatten() for _, codes_Rn, _ in factors]
    return torch.cat([scales_4R.flatten().view(torch.uint8), *codes])


def is_broken(payload: Tensor) -> Tensor:
    """Whether :func:`pack` has marked the payload: a bool of no dimension on its device, for which nothing is waited."""
    # clone(): a slice of a buffer may begin at an odd byte. All scales of U are marked, so the first is enough.
    return payload[:2].clone().view(torch.float16).isnan().any()


def add_decoded(payload: Tensor, base_NC: Tensor) -> None:
    """``base += decode(payload)``, in place, by the formula above, rounded once to the base's dtype.

    A marked payload makes the whole base NaN. A base that overflows its dtype becomes infinite, which the next residual shows.
    """
    if not payload.numel():
        return
    u_RN, v_RC = unpack(payload, *base_NC.shape)
    for begin in range(0, base_NC.shape[0], _ROWS_AT_ONCE):
        rows = base_NC[begin : begin + _ROWS_AT_ONCE]
        product = torch.zeros_like(rows, dtype=torch.float32)
        for u, v in zip(u_RN[:, begin : begin + _ROWS_AT_ONCE], v_RC, strict=True):
            # Whether torch contracts this to a fused multiply-add is all the same: the product is exact.
            product.addcmul_(u[:, None], v[None, :])
        rows.copy_(rows.float() + product)


def unpack(payload: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The factors that both ends multiply: ``[R, N]`` and ``[R, C]``, float32 numbers that float16 can hold."""
    rank = rank_in(payload.numel(), rows, columns)
    sizes = [rank * COMPONENT_BYTES, rank * ((rows + 1) // 2), rank * ((columns + 1) // 2)]
    scales, u_codes, v_codes = torch.split(payload, sizes)
    scales_4R = scales.clone().view(torch.float16).view(SCALES, rank)
    return (
        _dequantise(u_codes.view(rank, -1), scales_4R[:2], rows),
        _dequantise(v_codes.view(rank, -1), scales_4R[2:], columns),
    )


def _quantise(factor_nR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float16 scales and lows ``[2, R]``, uint8 codes ``[R, n]``, and whether everything is finite, also when decoded."""
    values_Rn = factor_nR.mT
    least, greatest = values_Rn.amin(1).clamp_max(0.0), values_Rn.amax(1).clamp_min(0.0)
    scale = _up_to_seven_bits((greatest - least) / GREATEST_CODE)
    step = scale.float()
    # A step of zero divides zero by zero, and a bad factor gives what no cast defines.
    zero = (-least / step).nan_to_num(nan=0.0).round()
    codes_Rn = (values_Rn / step[:, None]).nan_to_num(nan=0.0).round() + zero[:, None]
    # 0.0 first: the low of a column without negative numbers is no minus zero.
    low = (0.0 - zero * step).half()
    top = (GREATEST_CODE * step + low.float()).half()
    fits = (values_Rn.isfinite().all(1) & low.isfinite() & scale.isfinite() & top.isfinite()).all()
    return torch.stack([scale, low]), codes_Rn.clamp(0, GREATEST_CODE).to(torch.uint8), fits


def _up_to_seven_bits(positive: Tensor) -> Tensor:
    """To float16 numbers of seven significant bits: their products with a code have eleven, as many as float16."""
    return ((positive.half().view(torch.int16) + 15) & ~15).view(torch.float16)


def _dequantise(bytes_Rn: Tensor, scale_and_low_2R: Tensor, length: int) -> Tensor:
    """``[R, ceil(n / 2)]`` -> float32 ``[R, n]``."""
    codes_Rn = torch.stack([bytes_Rn & 15, bytes_Rn >> 4], dim=-1).flatten(1)[:, :length]
    scale, low = scale_and_low_2R.float().unsqueeze(-1).unbind()
    # half() changes nothing that pack has made; with it, products are exact in float32 whatever the bytes are.
    return (codes_Rn.float() * scale + low).half().float()


def _two_a_byte(codes_Rn: Tensor) -> Tensor:
    """``[R, n]`` -> ``[R, ceil(n / 2)]``; an odd n ends with four bits of zeros."""
    even_Rn = torch.nn.functional.pad(codes_Rn, (0, codes_Rn.shape[1] % 2))
    return even_Rn[:, 0::2] | (even_Rn[:, 1::2] << 4)
