"""8-bit head rows, quantised and permuted in one pass, and back in one pass; one launch for q, k and v.

Formula, formats and what becomes of NaN: :mod:`.reference`. Example: the row (0, 1, -2) in fp8 has ``scale = 2 / 448`` and the
payload (0, 224, -448).

Bytes per element: its size read and 1 written (and 4 a head row), the other way round on the way back. Our own code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..all_to_all_permute.triton import head_row_places, move_rows, power_of_2, rows_of_a_program
from .formats import LEAST_MAXIMUM, LIMITS, RAW, heads_of, piece_bytes, token_bytes

_LEAST = tl.constexpr(LEAST_MAXIMUM)
_FP8_LIMIT, _INT8_LIMIT = tl.constexpr(LIMITS["fp8"]), tl.constexpr(LIMITS["int8"])
_ROUNDER = tl.constexpr(1.5 * 2.0**23)
"""Added to and taken from a float32 below 2**22, it leaves the nearest whole number, ties to even: where the last place is worth 1."""


@triton.jit
def encode_rows(
    x, buffer, n, batch, h, width, x_b, x_t, x_h, row_bytes, offset,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Head rows of ``x`` into the section that begins ``offset`` bytes into each token of the buffer."""
    is_row, x_at, token_at, row = head_row_places(x, buffer, n, batch, h, x_b, x_t, x_h, row_bytes, BLOCK_ROWS)
    d = tl.arange(0, BLOCK)[None, :]
    inside = is_row[:, None] & (d < width)
    value = tl.load(x_at[:, None] + d, mask=inside, other=0.0).to(tl.float32)
    magnitude = tl.abs(value)
    # Counted apart: a maximum need not keep NaN. The compare is false for NaN and for infinities.
    is_bad = tl.sum((~(magnitude < float("inf"))).to(tl.int32), axis=1) > 0
    limit = _FP8_LIMIT if FP8 else _INT8_LIMIT
    greatest = tl.max(magnitude, axis=1)
    scale = tl.where(greatest > _LEAST, greatest, _LEAST) / limit
    scaled = tl.where(is_bad[:, None], 0.0, value * (1.0 / scale)[:, None])
    if FP8:
        payload = scaled.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        payload = ((scaled + _ROUNDER) - _ROUNDER).to(tl.int8).to(tl.uint8, bitcast=True)
    row_at = token_at + offset + row * (width + 4)
    tl.store(row_at[:, None] + d, payload, mask=inside)
    # Byte by byte: with an odd width the scale is not aligned.
    bits = tl.where(is_bad, float("nan"), scale).to(tl.uint32, bitcast=True)
    byte = tl.arange(0, 4)[None, :]
    tl.store(
        row_at[:, None] + width + byte,
        ((bits[:, None] >> (byte * 8).to(tl.uint32)) & 255).to(tl.uint8),
        mask=is_row[:, None],
    )


@triton.jit
def decode_rows(
    x, buffer, n, batch, h, width, x_b, x_t, x_h, row_bytes, offset,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """The way back into ``x``."""
    is_row, x_at, token_at, row = head_row_places(x, buffer, n, batch, h, x_b, x_t, x_h, row_bytes, BLOCK_ROWS)
    d = tl.arange(0, BLOCK)[None, :]
    inside = is_row[:, None] & (d < width)
    row_at = token_at + offset + row * (width + 4)
    payload = tl.load(row_at[:, None] + d, mask=inside, other=0)
    byte = tl.arange(0, 4)[None, :]
    scale_bytes = tl.load(row_at[:, None] + width + byte, mask=is_row[:, None], other=0).to(tl.uint32)
    scale = tl.sum(scale_bytes << (byte * 8).to(tl.uint32), axis=1).to(tl.uint32).to(tl.float32, bitcast=True)
    if FP8:
        value = payload.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        value = payload.to(tl.int8, bitcast=True).to(tl.float32)
    tl.store(x_at[:, None] + d, (value * scale[:, None]).to(x.dtype.element_ty), mask=inside)


@triton.jit
def one_tensor(
    x, buffer, n, batch, h, width, raw_width, x_b, x_t, x_h, row_bytes, offset,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr, RAW_BLOCK: tl.constexpr, IS_RAW: tl.constexpr, FP8: tl.constexpr, PACKS: tl.constexpr,
):  # fmt: skip
    """Raw rows are moved as bytes: ``x`` is then a view as uint8, and its strides count bytes."""
    if IS_RAW:
        move_rows(x, buffer, n, batch, h, raw_width, x_b, x_t, x_h, row_bytes, offset, BLOCK_ROWS, RAW_BLOCK, PACKS)
    elif PACKS:
        encode_rows(x, buffer, n, batch, h, width, x_b, x_t, x_h, row_bytes, offset, BLOCK_ROWS, BLOCK, FP8)
    else:
        decode_rows(x, buffer, n, batch, h, width, x_b, x_t, x_h, row_bytes, offset, BLOCK_ROWS, BLOCK, FP8)


@triton.jit
def rows_kernel(
    q, k, v, buffer, n, batch, h, width, raw_width, q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, row_bytes, k_offset, v_offset,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr, RAW_BLOCK: tl.constexpr,
    Q_RAW: tl.constexpr, K_RAW: tl.constexpr, V_RAW: tl.constexpr, FP8: tl.constexpr, PACKS: tl.constexpr,
):  # fmt: skip
    """The second axis of the grid says which tensor."""
    if tl.program_id(1) == 0:
        one_tensor(
            q, buffer, n, batch, h, width, raw_width, q_b, q_t, q_h, row_bytes, 0, BLOCK_ROWS, BLOCK, RAW_BLOCK, Q_RAW, FP8, PACKS
        )  # fmt: skip
    elif tl.program_id(1) == 1:
        one_tensor(
            k, buffer, n, batch, h, width, raw_width, k_b, k_t, k_h, row_bytes, k_offset, BLOCK_ROWS, BLOCK, RAW_BLOCK, K_RAW, FP8, PACKS
        )  # fmt: skip
    else:
        one_tensor(
            v, buffer, n, batch, h, width, raw_width, v_b, v_t, v_h, row_bytes, v_offset, BLOCK_ROWS, BLOCK, RAW_BLOCK, V_RAW, FP8, PACKS
        )  # fmt: skip


def _launch(tensors: Sequence[Tensor], buffer_PnR: Tensor, forms: Sequence[str], *, packs: bool) -> None:
    parts, n, row_bytes = buffer_PnR.shape
    B, _, H, D = tensors[0].shape
    if not buffer_PnR.numel():
        return
    itemsize, heads = tensors[0].element_size(), B * (H // parts)
    sizes = [heads * piece_bytes(form, D, tensors[0].dtype) for form in forms]
    count, raw = len(tensors), [form == RAW for form in forms]
    views = [x.view(torch.uint8) if is_raw else x for x, is_raw in zip(tensors, raw, strict=True)]
    q, k, v = (*views, *views[:1] * (3 - count))
    q_raw, k_raw, v_raw = (*raw, *raw[:1] * (3 - count))
    block = power_of_2(D)
    block_rows = rows_of_a_program(heads, block)
    rows_kernel[(parts * n, count, triton.cdiv(heads, block_rows))](
        q, k, v, buffer_PnR, n, B, H // parts, D, D * itemsize,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], row_bytes, sum(sizes[:1]), sum(sizes[:2]),
        BLOCK_ROWS=block_rows, BLOCK=block, RAW_BLOCK=power_of_2(D * itemsize),
        Q_RAW=q_raw, K_RAW=k_raw, V_RAW=v_raw, FP8="fp8" in forms, PACKS=packs,
    )  # fmt: skip


def pack_quantised(tensors: Sequence[Tensor], forms: Sequence[str], parts: int) -> Tensor:
    """See :func:`.reference.pack_quantised`; one to three tensors, dense in their last dimension, and one 8-bit form at most."""
    B, n, H, D = tensors[0].shape
    size = token_bytes(forms, B * (H // parts), D, tensors[0].dtype)
    packed = tensors[0].new_empty(parts, n, size, dtype=torch.uint8)
    _launch(tensors, packed, forms, packs=True)
    return packed


def unpack_quantised(
    packed_PnR: Tensor, forms: Sequence[str], *, batch: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """See :func:`.reference.unpack_quantised`; one to three tensors, and one 8-bit form at most."""
    parts, n, size = packed_PnR.shape
    h = heads_of(size, forms, batch, head_dim, dtype)
    tensors = tuple(packed_PnR.new_empty(batch, n, parts * h, head_dim, dtype=dtype) for _ in forms)
    _launch(tensors, packed_PnR.contiguous(), forms, packs=False)
    return tensors
