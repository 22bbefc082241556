"""Codes of one to two bits: statistics, encoding and decoding in one pass each over x and the base.

Formula: :mod:`.reference`. Example: residuals (3, -1) with the scales (2, 2) are the binary byte 1 and add (2, -2) to the base.

Bytes per element, both in 16 bits: 6 and those of the code to encode (read x and base, write base), with the statistics of the next scales on the way;
4 and those of the code to decode; 4 for the statistics alone. The partial sums of columns add 4 / 16, written and read once more. Our own code.

Encoding cuts rows and channels into tiles, so no program sees a whole row or column. Each leaves its sums; a second launch, of few bytes, makes scales of
them and NaN of rows that any tile found broken. No atomics: the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..all_to_all_permute.triton import power_of_2
from ..explicit_rounding import HALF_MAX
from ..explicit_rounding.triton import half, stored
from .formats import FORMS, LEAST_MEAN, Form

_HALF_MAX, _LEAST_MEAN = tl.constexpr(HALF_MAX), tl.constexpr(LEAST_MEAN)
_TILE_ROWS, _TILE_CHANNELS = 16, 256
_FINISHED = 64
"""Rows or channels whose scale one program of the second launch makes; it adds up as many sums at once."""


@triton.jit
def tile_of(rows, channels, ROWS: tl.constexpr, BYTES: tl.constexpr, LANES: tl.constexpr, PER_BYTE: tl.constexpr):
    """This program's (rows ``[ROWS]``, channels ``[BYTES, LANES]``, which rows are there, which channels); a byte's unused lanes are not."""
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte, lane = tl.program_id(1) * BYTES + tl.arange(0, BYTES), tl.arange(0, LANES)
    c = byte[:, None] * PER_BYTE + lane[None, :]
    is_channel = (lane < PER_BYTE)[None, :] & (c < channels)
    return n, c, n < rows, is_channel


@triton.jit
def places(LANES: tl.constexpr, RADIX: tl.constexpr):
    """What a lane's digit counts in its byte: powers of the radix."""
    i = tl.arange(0, LANES)
    if RADIX == 3:
        return tl.where(i == 0, 1, tl.where(i == 1, 3, tl.where(i == 2, 9, tl.where(i == 3, 27, 81))))
    else:
        return 1 << (i * (RADIX // 2))


@triton.jit
def digits_of(byte, LANES: tl.constexpr, RADIX: tl.constexpr):
    """``[ROWS, BYTES]`` -> ``[ROWS, BYTES, LANES]``."""
    i = tl.arange(0, LANES)
    if RADIX == 3:
        # byte // 3**i and the remainder by 3 as products with reciprocals, 65536 / 3**i rounded up: exact for all bytes, and far cheaper.
        reciprocal = tl.where(
            i == 0, 65536, tl.where(i == 1, 21846, tl.where(i == 2, 7282, tl.where(i == 3, 2428, 810)))
        )
        quotient = (byte[:, :, None] * reciprocal[None, None, :]) >> 16
        return quotient - 3 * ((quotient * 21846) >> 16)
    else:
        return (byte[:, :, None] >> (i * (RADIX // 2))[None, None, :]) & (RADIX - 1)


@triton.jit
def scale_of(u, v):
    """Zero in rows whose u is NaN."""
    return half(tl.where(u == u, u, 0.0)[:, None, None] * v[None, :, :])


@triton.jit
def updated(base, digit, scale, RADIX: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr):
    """The base plus what a digit decodes to, in float32."""
    if RADIX == 2:
        is_positive, magnitude = digit == 1, half(FAR * scale)
    elif RADIX == 3:
        is_positive, magnitude = digit == 2, tl.where(digit == 1, 0.0, half(FAR * scale))
    else:
        is_positive, magnitude = digit >= 2, tl.where((digit & 1) == 1, half(FAR * scale), half(NEAR * scale))
    return base + tl.where(is_positive, magnitude, 0.0 - magnitude)


@triton.jit
def encode_kernel(
    x, base, u, v, codes, row_sums, column_sums, tile_sums, rows, channels, code_bytes, x_n,
    ROWS: tl.constexpr, BYTES: tl.constexpr, LANES: tl.constexpr, PER_BYTE: tl.constexpr, RADIX: tl.constexpr,
    THRESHOLD: tl.constexpr, NEAR: tl.constexpr, FAR: tl.constexpr, ENCODES: tl.constexpr,
):  # fmt: skip
    """One tile. Without ``ENCODES`` the statistics only, and ``u``, ``v`` and ``codes`` are not touched.

    Sums: of magnitudes, float32 ``[column tiles, N]`` (NaN for broken rows), ``[row tiles, C]`` and ``[row tiles, column tiles]``.
    """
    n, c, is_row, is_channel = tile_of(rows, channels, ROWS, BYTES, LANES, PER_BYTE)
    inside = is_row[:, None, None] & is_channel[None, :, :]
    base_at = base + (n * channels)[:, None, None] + c[None, :, :]
    before = tl.load(base_at, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(x + (n * x_n)[:, None, None] + c[None, :, :], mask=inside, other=0.0).to(tl.float32) - before
    is_good = tl.abs(residual) < float("inf")
    residual = tl.where(is_good, residual, 0.0)
    is_broken = tl.sum(tl.sum((~is_good).to(tl.int32), axis=2), axis=1) > 0
    magnitude = tl.abs(residual)
    if ENCODES:
        u_n = tl.load(u + n, mask=is_row, other=0.0).to(tl.float32)
        is_broken = is_broken | (u_n != u_n)
        scale = scale_of(u_n, tl.load(v + c, mask=is_channel, other=0.0).to(tl.float32))
        is_positive, is_far = (residual >= 0).to(tl.int32), (magnitude > THRESHOLD * scale).to(tl.int32)
        if RADIX == 2:
            digit = is_positive
        elif RADIX == 3:
            digit = 1 + is_far * (2 * is_positive - 1)
        else:
            digit = 2 * is_positive + is_far
        byte = tl.sum(tl.where(inside, digit, 0) * places(LANES, RADIX)[None, None, :], axis=2)
        j = tl.program_id(1) * BYTES + tl.arange(0, BYTES)[None, :]
        tl.store(codes + (n * code_bytes)[:, None] + j, byte.to(tl.uint8), mask=is_row[:, None] & (j < code_bytes))
        after = updated(before, digit, scale, RADIX, NEAR, FAR)
        tl.store(base_at, stored(after, base.dtype.element_ty), mask=inside)
    magnitude = tl.minimum(magnitude, _HALF_MAX)
    row_sum = tl.sum(tl.sum(magnitude, axis=2), axis=1)
    row_tile, column_tile = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    tl.store(row_sums + column_tile * rows + n, tl.where(is_broken, float("nan"), row_sum), mask=is_row)
    tl.store(column_sums + row_tile * channels + c, tl.sum(magnitude, axis=0), mask=is_channel)
    tl.store(tile_sums + row_tile * tl.num_programs(1) + column_tile, tl.sum(row_sum, axis=0))


@triton.jit
def finish_rows(
    u, base, row_sums, tile_sums, rows, channels, row_tiles, column_tiles,
    BLOCK: tl.constexpr, COLUMN_TILES: tl.constexpr, ENCODES: tl.constexpr,
):  # fmt: skip
    """u of this program's rows, and NaN into the base of those that are broken."""
    # Every program adds up the sums of all tiles: one float for thousands of residuals.
    one, total = tl.arange(0, BLOCK * BLOCK), tl.zeros([BLOCK * BLOCK], tl.float32)
    for start in range(0, row_tiles * column_tiles, BLOCK * BLOCK):
        total += tl.load(tile_sums + start + one, mask=start + one < row_tiles * column_tiles, other=0.0)
    mean = tl.sum(total, axis=0) / rows / channels
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_row, tile = n < rows, tl.arange(0, COLUMN_TILES)[:, None]
    parts = tl.load(
        row_sums + tile.to(tl.int64) * rows + n[None, :], mask=(tile < column_tiles) & is_row[None, :], other=0.0
    )
    row_sum = tl.sum(parts, axis=0)
    u_n = row_sum / channels / tl.where(mean > _LEAST_MEAN, mean, _LEAST_MEAN)
    is_broken = row_sum != row_sum
    tl.store(u + n, tl.where(is_broken, float("nan"), tl.minimum(u_n, _HALF_MAX)).to(tl.float16), mask=is_row)
    if ENCODES:
        is_broken = is_broken & is_row
        if tl.sum(is_broken.to(tl.int32), axis=0) > 0:
            nothing = tl.full([BLOCK, BLOCK], float("nan"), tl.float32)
            for start in range(0, channels, BLOCK):
                c = start + tl.arange(0, BLOCK)[None, :]
                tl.store(
                    base + (n * channels)[:, None] + c, stored(nothing, base.dtype.element_ty),
                    mask=is_broken[:, None] & (c < channels),
                )  # fmt: skip


@triton.jit
def finish_columns(v, column_sums, first, rows, channels, row_tiles, BLOCK: tl.constexpr):
    """v of the channels from ``first`` on."""
    c = first + tl.arange(0, BLOCK)
    is_channel, column = c < channels, tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, row_tiles, BLOCK):
        tile = (start + tl.arange(0, BLOCK))[:, None]
        column += tl.load(
            column_sums + tile.to(tl.int64) * channels + c[None, :],
            mask=(tile < row_tiles) & is_channel[None, :], other=0.0,
        )  # fmt: skip
    v_c = tl.sum(column, axis=0) / rows
    tl.store(v + c, tl.minimum(v_c, _HALF_MAX).to(tl.float16), mask=is_channel)


@triton.jit
def finish_kernel(
    u, v, base, row_sums, column_sums, tile_sums, rows, channels, row_tiles, column_tiles, u_programs,
    BLOCK: tl.constexpr, COLUMN_TILES: tl.constexpr, ENCODES: tl.constexpr,
):  # fmt: skip
    """Scales of the sums: u by the first ``u_programs`` programs, v by the others."""
    if tl.program_id(0) < u_programs:
        finish_rows(
            u, base, row_sums, tile_sums, rows, channels, row_tiles, column_tiles, BLOCK, COLUMN_TILES, ENCODES
        )  # fmt: skip
    else:
        first = (tl.program_id(0) - u_programs) * BLOCK
        finish_columns(v, column_sums, first, rows, channels, row_tiles, BLOCK)


@triton.jit
def decode_kernel(
    codes, u, v, next_u, base, rows, channels, code_bytes,
    ROWS: tl.constexpr, BYTES: tl.constexpr, LANES: tl.constexpr, PER_BYTE: tl.constexpr, RADIX: tl.constexpr,
    NEAR: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """One tile."""
    n, c, is_row, is_channel = tile_of(rows, channels, ROWS, BYTES, LANES, PER_BYTE)
    inside = is_row[:, None, None] & is_channel[None, :, :]
    u_n = tl.load(u + n, mask=is_row, other=0.0).to(tl.float32)
    next_n = tl.load(next_u + n, mask=is_row, other=0.0).to(tl.float32)
    scale = scale_of(u_n, tl.load(v + c, mask=is_channel, other=0.0).to(tl.float32))
    j = tl.program_id(1) * BYTES + tl.arange(0, BYTES)[None, :]
    byte = tl.load(codes + (n * code_bytes)[:, None] + j, mask=is_row[:, None] & (j < code_bytes), other=0)
    base_at = base + (n * channels)[:, None, None] + c[None, :, :]
    before = tl.load(base_at, mask=inside, other=0.0).to(tl.float32)
    after = updated(before, digits_of(byte.to(tl.int32), LANES, RADIX), scale, RADIX, NEAR, FAR)
    is_broken = (u_n != u_n) | (next_n != next_n)
    after = tl.where(is_broken[:, None, None], float("nan"), after)
    tl.store(base_at, stored(after, base.dtype.element_ty), mask=inside)


def tile_shape(form: Form, channels: int) -> dict[str, int]:
    """Constants of a tile: of a kernel's code, so few of them differ."""
    lanes = power_of_2(form.codes_per_byte)
    in_bytes = min(power_of_2(-(-channels // form.codes_per_byte)), _TILE_CHANNELS // lanes)
    return {"ROWS": _TILE_ROWS, "BYTES": in_bytes, "LANES": lanes, "PER_BYTE": form.codes_per_byte, "RADIX": form.radix}


def scales(x_NC: Tensor, base_NC: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.scales`."""
    # The form only says how the tiles are cut: binary fills them.
    return _pass_over(x_NC, base_NC, None, None, FORMS["binary"], None)


def encode(
    x_NC: Tensor, base_NC: Tensor, u_N: Tensor, v_C: Tensor, form: str, codes_out: Tensor
) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.encode`."""
    return _pass_over(x_NC, base_NC, u_N, v_C, FORMS[form], codes_out)


def _pass_over(
    x_NC: Tensor, base_NC: Tensor, u_N: Tensor | None, v_C: Tensor | None, form: Form, codes_out: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows, channels = x_NC.shape
    next_u, next_v = (base_NC.new_empty(size, dtype=torch.float16) for size in (rows, channels))
    if not rows:
        return next_u, next_v.zero_()
    tile, encodes = tile_shape(form, channels), codes_out is not None
    row_tiles = triton.cdiv(rows, tile["ROWS"])
    column_tiles = triton.cdiv(channels, tile["BYTES"] * form.codes_per_byte)
    row_sums, column_sums, tile_sums = (
        base_NC.new_empty(size, dtype=torch.float32)
        for size in (column_tiles * rows, row_tiles * channels, row_tiles * column_tiles)
    )
    u, v, codes = (base_NC if x is None else x for x in (u_N, v_C, codes_out))
    encode_kernel[(row_tiles, column_tiles)](
        x_NC, base_NC, u, v, codes, row_sums, column_sums, tile_sums, rows, channels, -(-channels // form.codes_per_byte), x_NC.stride(0),
        **tile, THRESHOLD=form.threshold, NEAR=form.near, FAR=form.far, ENCODES=encodes,
    )  # fmt: skip
    u_programs = triton.cdiv(rows, _FINISHED)
    finish_kernel[(u_programs + triton.cdiv(channels, _FINISHED),)](
        next_u, next_v, base_NC, row_sums, column_sums, tile_sums, rows, channels, row_tiles, column_tiles, u_programs,
        BLOCK=_FINISHED, COLUMN_TILES=power_of_2(column_tiles), ENCODES=encodes,
    )  # fmt: skip
    return next_u, next_v


def decode(codes: Tensor, u_N: Tensor, v_C: Tensor, base_NC: Tensor, form: str, next_u_N: Tensor) -> None:
    """See :func:`.reference.decode`."""
    (rows, channels), kind = base_NC.shape, FORMS[form]
    if not rows:
        return
    tile = tile_shape(kind, channels)
    grid = (triton.cdiv(rows, tile["ROWS"]), triton.cdiv(channels, tile["BYTES"] * kind.codes_per_byte))
    decode_kernel[grid](
        codes, u_N, v_C, next_u_N, base_NC, rows, channels, codes.shape[1], **tile, NEAR=kind.near, FAR=kind.far
    )  # fmt: skip
