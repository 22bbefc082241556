"""Residuals in 4 or 8 bits and key frames: by hand and to the byte, both ends' bases bit for bit, and how near they come."""

from __future__ import annotations

import itertools
import struct

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from tutti.kernels.residual_rows import (
    LIMITS,
    decode,
    encode,
    has_broken_rows,
    payload_bytes,
    row_bytes,
    why_not_on,
)

from tests.support.bits import same_bits_or_nan
from tests.unit.kernels.heads import DTYPES
from tests.unit.kernels.walks import HEADS, PAIRS, walk

STEP = {"fp8": 16 / 448, "int8": 0.5 / 127, "int4": 0.5 / 7}
"""Half a step of the format at its greatest value, as a share of it: what no number of a row is off by more."""
CUT = 2.0**-15
"""What the cut of the scale adds to it."""
LAST_PLACE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def new_payload(form: str, N: int, H: int, D: int) -> Tensor:
    return torch.full((N, H, row_bytes(form, D)), 0xAA, dtype=torch.uint8)


def sent(form: str, x: Tensor, base: Tensor, *, is_key: bool = False) -> Tensor:
    """The payload."""
    payload = new_payload(form, *x.shape)
    encode(x, base, form, payload, is_key=is_key)
    return payload


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "size"), [("int8", 1088 * 24 * 132), ("fp8", 1088 * 24 * 132), ("int4", 1088 * 24 * 68)]
)
def test_a_payload_has_exactly_so_many_bytes(form: str, size: int) -> None:
    assert payload_bytes(form, 1088, 24, 128) == size
    assert new_payload(form, 1088, 24, 128).nbytes == size
    assert row_bytes("int4", 5) == 3 + 4, "an odd row ends with half a byte of padding"


def test_a_row_is_its_payload_and_its_scale_to_the_byte() -> None:
    x, base = torch.tensor([[[1.0, 2.0, -1.0]]]), torch.ones(1, 1, 3)
    payload = sent("int4", x, base.clone())
    # 2 / 7 is 0x3e924925.
    assert payload.flatten().tolist() == [0x40, 0x09, *struct.pack("<I", 0x3E924900)]
    payload = sent("int8", x, base.clone())
    assert payload.flatten().tolist() == [0, 64, 256 - 127, *struct.pack("<I", 0x3C810200)]
    payload = sent("fp8", x, base)
    # e4m3: 448 is 0x7e; 224, half of it, one exponent less. 2 / 448 is 0x3b924925.
    assert payload.flatten().tolist() == [0, 0x76, 0xFE, *struct.pack("<I", 0x3B924900)]
    assert base.flatten().tolist() == pytest.approx([1, 2, -1], abs=2e-5)


# --- both ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", LIMITS)
@pytest.mark.parametrize(("x_dtype", "base_dtype"), PAIRS)
def test_both_bases_are_the_same_bits_after_fifty_steps(form: str, x_dtype: str, base_dtype: str) -> None:
    bases = [torch.full((5, 3, 7), torch.nan, dtype=DTYPES[base_dtype]) for _ in range(2)]
    for number, x in enumerate(walk(5, 3, 7, steps=51, dtype=DTYPES[x_dtype])):
        payload = sent(form, x, bases[0], is_key=number == 0)
        decode(payload, bases[1], form, is_key=number == 0)
        assert same_bits_or_nan(*bases)
        assert not has_broken_rows(payload)
    error = (x.float() - bases[0].float()).norm() / x.float().norm()
    assert error < 0.1, "and they follow"


@pytest.mark.parametrize("form", LIMITS)
def test_the_comparison_notices_another_scale_and_a_flipped_bit(form: str) -> None:
    """Negative control."""
    first, x = walk(5, 3, 7, steps=2)
    base = first.contiguous()
    before = base.clone()
    payload = sent(form, x, base)
    for place in (1, -2):
        broken, received = payload.clone(), before.clone()
        broken[2, 1, place] ^= 1
        decode(broken, received, form)
        assert not same_bits_or_nan(received, base)
    decode(payload, before, form)
    assert same_bits_or_nan(before, base)


@pytest.mark.parametrize("form", LIMITS)
@pytest.mark.parametrize("is_key", [True, False], ids=["key frame", "residual"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("size", HEADS, ids=str)
def test_no_number_is_off_by_more_than_half_a_step_of_its_own_row(
    size: tuple[int, int, int], dtype: torch.dtype, is_key: bool, form: str
) -> None:
    first, x = walk(*size, steps=2, dtype=dtype)
    base = first.float() + 0.1
    residual = x.float() if is_key else x.float() - base
    sent(form, x, base, is_key=is_key)
    greatest = residual.abs().amax(-1, keepdim=True)
    allowed = (STEP[form] + CUT) * greatest + LAST_PLACE[torch.float32] * x.float().abs().amax(-1, keepdim=True)
    assert ((base - x.float()).abs() <= allowed).all()


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_one_scale_for_all_rows_would_be_noticed(form: str) -> None:
    """Negative control; fp8, whose steps are shares of each number, would notice only far smaller rows."""
    (x,) = walk(7, 5, 16, steps=1)
    base = torch.zeros(1, 1, x.numel())
    sent(form, x.reshape(1, 1, -1), base)
    error = (base.view(x.shape) - x).abs().amax(-1) / x.abs().amax(-1)
    assert error.max() > 5 * (STEP[form] + CUT)


@pytest.mark.parametrize("form", LIMITS)
def test_the_error_of_a_key_frame_is_gone_after_two_steps(form: str) -> None:
    """An int4 residual leaves what int4 leaves of a change of 20 %, whatever the key frame left."""
    errors = {}
    for key in ("exact", "coded"):
        first, *trajectory = walk(16, 4, 32, steps=3)
        base = first.contiguous()
        if key == "coded":
            sent("int4", first, base, is_key=True)
        for x in trajectory:
            sent(form, x, base)
        errors[key] = float((x - base).norm() / x.norm())
    assert errors["coded"] < 1.2 * errors["exact"] + 1e-3


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", LIMITS)
def test_a_residual_of_zeros_leaves_the_base(form: str) -> None:
    (x,) = walk(3, 2, 5, steps=1)
    base = x.contiguous()
    assert not sent(form, x, base)[..., :-4].any()
    assert torch.equal(base, x)


@pytest.mark.parametrize("form", LIMITS)
@pytest.mark.parametrize("size", [1e-42, 1e-30, 3e38])
def test_the_smallest_and_greatest_rows_come_out_finite(form: str, size: float) -> None:
    x, base = torch.tensor([size, -size / 2, 0.0]).view(1, 1, 3), torch.zeros(1, 1, 3)
    sent(form, x, base)
    assert ((base - x).abs() <= max((STEP[form] + CUT) * size, 2.0**-100)).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("is_key", [True, False], ids=["key frame", "residual"])
@pytest.mark.parametrize("form", LIMITS)
def test_a_row_with_one_bad_number_is_nan_at_both_ends_until_a_key_frame(form: str, is_key: bool, bad: float) -> None:
    first, x, good = walk(5, 3, 7, steps=3, dtype=torch.bfloat16)
    bases = [first.half().contiguous() for _ in range(2)]
    x[4, 1, 6] = bad
    payload = sent(form, x, bases[0], is_key=is_key)
    decode(payload, bases[1], form, is_key=is_key)
    assert has_broken_rows(payload)
    assert bases[0][4, 1].isnan().all()
    assert bases[0].isnan().sum() == 7
    assert same_bits_or_nan(*bases)
    decode(sent(form, good, bases[0]), bases[1], form)
    assert bases[1].isnan().sum() == 7, "a residual to nothing is nothing"
    decode(sent(form, good, bases[0], is_key=True), bases[1], form, is_key=True)
    assert bases[1].isfinite().all()
    assert same_bits_or_nan(*bases)


# --- everywhere -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused() -> None:
    x, base = torch.zeros(3, 2, 8), torch.zeros(3, 2, 8)
    payload = new_payload("int8", 3, 2, 8)
    with pytest.raises(ValueError, match="'raw' is none of them"):
        decode(payload, base, "raw")
    for bad in (payload[:2], payload[..., :-1].contiguous(), payload.int()):
        with pytest.raises(ValueError, match="Give a contiguous uint8 payload"):
            decode(bad, base, "int8")
    with pytest.raises(ValueError, match="Give a contiguous base"):
        decode(payload, base.transpose(0, 2).contiguous().transpose(0, 2), "int8")
    for bad in (x[:2], x.transpose(1, 2).contiguous().transpose(1, 2)):
        with pytest.raises(ValueError, match="Give x like its base"):
            encode(bad, base, "int8", payload)
    assert "Take int8" in str(why_not_on("fp8", (8, 6)))
    assert why_not_on("int4", (8, 0)) is why_not_on("fp8", (8, 9)) is None


def test_tensors_that_are_not_there_pass_through() -> None:
    with FakeTensorMode():
        for device, form in itertools.product(("cpu", "meta"), LIMITS):
            x, base = (torch.empty(5, 3, 7, dtype=torch.bfloat16, device=device) for _ in range(2))
            payload = torch.empty(5, 3, row_bytes(form, 7), dtype=torch.uint8, device=device)
            encode(x, base, form, payload)
            decode(payload, base, form)
            assert has_broken_rows(payload).shape == ()
