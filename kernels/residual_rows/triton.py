"""Residuals in 4 or 8 bits: quantised, packed and added in one pass, and unpacked and added in one pass.

Formula: :mod:`.reference`. Example: the residuals (0, 1, -2) in int4 are the bytes 0x40 0x09 and add (0, 1.1428528, -1.9999924).

Bytes per element, x and base in 16 bits: 6 (4 in a key frame, which does not read the base) and those of the payload to encode; 4 (2) and those of the
payload to decode; 8 more a head row for its scale. Our own code.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..all_to_all_permute.triton import power_of_2
from ..explicit_rounding.triton import short_scale, stored, whole
from .formats import LIMITS, values_per_byte

_ELEMENTS = 4096
"""Of one program, at most: 32 head rows of 128."""


@triton.jit
def rows_of_program(rows, width, row_bytes, ROWS: tl.constexpr, BYTES: tl.constexpr, LANES: tl.constexpr):
    """(Row ``[ROWS]``, which are there, byte ``[1, BYTES]``, which are payload, channel ``[1, BYTES, LANES]``, which are there)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte = tl.arange(0, BYTES)[None, :]
    d = byte[:, :, None] * LANES + tl.arange(0, LANES)[None, None, :]
    is_row = row < rows
    is_byte = is_row[:, None] & (byte < row_bytes - 4)
    return row, is_row, byte, is_byte, d, is_row[:, None, None] & (d < width)


@triton.jit
def encode_kernel(
    x, base, payload, rows, heads, width, row_bytes, x_n, x_h, limit,
    ROWS: tl.constexpr, BYTES: tl.constexpr, LANES: tl.constexpr, FP8: tl.constexpr, IS_KEY: tl.constexpr,
):  # fmt: skip
    """Some head rows. ``LANES`` numbers share a byte."""
    row, is_row, byte, is_byte, d, inside = rows_of_program(rows, width, row_bytes, ROWS, BYTES, LANES)
    # Divided in 32 bits, which count more head rows than any memory holds: 64-bit division is slow.
    n, h = (row.to(tl.int32) // heads).to(tl.int64), (row.to(tl.int32) % heads).to(tl.int64)
    x_at = x + n * x_n + h * x_h
    residual = tl.load(x_at[:, None, None] + d, mask=inside, other=0.0).to(tl.float32)
    base_at = base + (row * width)[:, None, None] + d
    if not IS_KEY:
        before = tl.load(base_at, mask=inside, other=0.0).to(tl.float32)
        residual = residual - before
    magnitude = tl.abs(residual)
    # Counted apart: a maximum need not keep NaN. The compare is false for NaN and for infinities.
    is_broken = tl.sum(tl.sum((~(magnitude < float("inf"))).to(tl.int32), axis=2), axis=1) > 0
    scale = short_scale(tl.max(tl.max(magnitude, axis=2), axis=1), is_broken, limit)
    scaled = residual * tl.div_rn(1.0, scale)[:, None, None]
    if FP8:
        coded = tl.where(is_broken[:, None, None], 0.0, scaled).to(tl.float8e4nv)
        number, bits = coded.to(tl.float32), coded.to(tl.uint8, bitcast=True).to(tl.int32)
    else:
        number = whole(scaled, is_broken[:, None, None])
        bits = number.to(tl.int32) & (255 if LANES == 1 else 15)
    packed = tl.sum(bits << (tl.arange(0, LANES) * 4)[None, None, :], axis=2)
    row_at = payload + row * row_bytes
    tl.store(row_at[:, None] + byte, packed.to(tl.uint8), mask=is_byte)
    # Byte by byte: with an odd width the scale is not aligned.
    of_scale = tl.arange(0, 4)[None, :]
    scale_bits = scale.to(tl.uint32, bitcast=True)[:, None] >> (of_scale * 8).to(tl.uint32)
    tl.store(row_at[:, None] + (row_bytes - 4) + of_scale, (scale_bits & 255).to(tl.uint8), mask=is_row[:, None])
    after = number * scale[:, None, None]
    if not IS_KEY:
        after = before + after
    tl.store(base_at, stored(after, base.dtype.element_ty), mask=inside)


@triton.jit
def decode_kernel(
    base, payload, rows, width, row_bytes,
    ROWS: tl.constexpr, BYTES: tl.constexpr, LANES: tl.constexpr, FP8: tl.constexpr, IS_KEY: tl.constexpr,
):  # fmt: skip
    """The way back into the base."""
    row, is_row, byte, is_byte, d, inside = rows_of_program(rows, width, row_bytes, ROWS, BYTES, LANES)
    row_at = payload + row * row_bytes
    packed = tl.load(row_at[:, None] + byte, mask=is_byte, other=0)
    of_scale = tl.arange(0, 4)[None, :]
    scale_bytes = tl.load(row_at[:, None] + (row_bytes - 4) + of_scale, mask=is_row[:, None], other=0).to(tl.uint32)
    scale = tl.sum(scale_bytes << (of_scale * 8).to(tl.uint32), axis=1).to(tl.uint32).to(tl.float32, bitcast=True)
    if FP8:
        number = packed[:, :, None].to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        sign = 128 if LANES == 1 else 8
        bits = (packed.to(tl.int32)[:, :, None] >> (tl.arange(0, LANES) * 4)[None, None, :]) & (2 * sign - 1)
        number = ((bits ^ sign) - sign).to(tl.float32)
    after = number * scale[:, None, None]
    base_at = base + (row * width)[:, None, None] + d
    if not IS_KEY:
        after = tl.load(base_at, mask=inside, other=0.0).to(tl.float32) + after
    tl.store(base_at, stored(after, base.dtype.element_ty), mask=inside)


def _shape(form: str, rows: int, row_bytes: int, is_key: bool) -> dict[str, int | bool]:
    lanes, in_bytes = values_per_byte(form), power_of_2(row_bytes - 4)
    block_rows = max(1, min(power_of_2(rows), _ELEMENTS // (in_bytes * lanes)))
    return {"ROWS": block_rows, "BYTES": in_bytes, "LANES": lanes, "FP8": form == "fp8", "IS_KEY": is_key}


def encode(x_NHD: Tensor, base_NHD: Tensor, form: str, payload_out: Tensor, is_key: bool) -> None:
    """See :func:`.reference.encode`."""
    N, H, D = x_NHD.shape
    if not x_NHD.numel():
        return
    row_bytes = payload_out.shape[2]
    shape = _shape(form, N * H, row_bytes, is_key)
    encode_kernel[(triton.cdiv(N * H, shape["ROWS"]),)](
        x_NHD, base_NHD, payload_out, N * H, H, D, row_bytes, *x_NHD.stride()[:2], LIMITS[form], **shape
    )  # fmt: skip


def decode(payload: Tensor, base_NHD: Tensor, form: str, is_key: bool) -> None:
    """See :func:`.reference.decode`."""
    N, H, D = base_NHD.shape
    if not base_NHD.numel():
        return
    row_bytes = payload.shape[2]
    shape = _shape(form, N * H, row_bytes, is_key)
    decode_kernel[(triton.cdiv(N * H, shape["ROWS"]),)](base_NHD, payload, N * H, D, row_bytes, **shape)
