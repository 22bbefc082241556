"""The specifications in torch: by hand, by their promises, and on tensors that are not there."""

from __future__ import annotations

import struct

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from tutti.kernels.all_to_all_permute import pack_heads, unpack_heads
from tutti.kernels.choice import runs_triton
from tutti.kernels.lse_merge import lse_merge
from tutti.kernels.row_quantise import pack_quantised, token_bytes, unpack_quantised, why_not_on

from tests.unit.kernels.heads import DTYPES, FORMS, SHAPES, heads

STEP = {"fp8": 16 / 448, "int8": 0.5 / 127}
"""Half a step of the format at its greatest value, as a share of it: what no number of a row is off by more."""
LAST_PLACE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def error_of_rows(got: Tensor, expected: Tensor) -> float:
    """The greatest difference as a share of the greatest value of its row."""
    difference = (got.double() - expected.double()).abs().amax(-1)
    return float((difference / expected.double().abs().amax(-1).clamp_min(1e-30)).max()) if expected.numel() else 0.0


def there_and_back(tensors: list[Tensor], forms: tuple[str, ...], parts: int) -> tuple[Tensor, ...]:
    packed = pack_quantised(tensors, forms, parts)
    B, _, _, D = tensors[0].shape
    return unpack_quantised(packed, forms, batch=B, head_dim=D, dtype=tensors[0].dtype)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_is_its_payload_and_its_scale_to_the_byte() -> None:
    row = torch.tensor([0.0, 1.0, -2.0]).view(1, 1, 1, 3)
    packed = pack_quantised([row], ["int8"], 1)
    assert packed.flatten().tolist() == [0, 64, 256 - 127, *struct.pack("<f", 2 / 127)]
    # e4m3: 448 is 0x7e; 224, half of it, one exponent less.
    assert pack_quantised([row], ["fp8"], 1).flatten().tolist() == [0, 0x76, 0xFE, *struct.pack("<f", 2 / 448)]


@pytest.mark.parametrize("forms", FORMS, ids="+".join)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_no_number_is_off_by_more_than_half_a_step_of_its_own_row(
    name: str, dtype: torch.dtype, forms: tuple[str, ...]
) -> None:
    *shape, parts = SHAPES[name]
    tensors = [heads(*shape, dtype, seed) for seed in range(len(forms))]
    for form, x, back in zip(forms, tensors, there_and_back(tensors, forms, parts), strict=True):
        assert back.is_contiguous()
        assert back.dtype == dtype
        assert not back[:, :1, :1].any(), "rows of zeros stay zeros"
        assert torch.equal(back, x) if form == "raw" else error_of_rows(back, x) <= STEP[form] + LAST_PLACE[dtype]


def test_one_scale_for_all_rows_would_be_noticed() -> None:
    """Negative control: what a scale per tensor does to rows that are 1000 times smaller."""
    x = heads(2, 5, 6, 16, torch.float32)
    as_one_row = there_and_back([x.contiguous().view(1, 1, 1, -1)], ("int8",), 1)[0].view(x.shape)
    assert error_of_rows(as_one_row, x) > 10 * STEP["int8"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", ["fp8", "int8"])
def test_a_row_with_one_bad_number_is_nan_as_a_whole_and_no_other_row_is(form: str, bad: float) -> None:
    x = heads(2, 5, 6, 16, torch.bfloat16)
    x[1, 3, 2, 7] = bad
    (back,) = there_and_back([x], (form,), 2)
    is_bad = back.isnan()
    assert is_bad[1, 3, 2].all()
    assert is_bad.sum() == 16


@pytest.mark.parametrize("form", ["fp8", "int8"])
@pytest.mark.parametrize("size", [1e-42, 1e-30, 3e38])
def test_the_smallest_and_greatest_rows_come_back_finite(form: str, size: float) -> None:
    x = torch.tensor([size, -size / 2, 0.0]).view(1, 1, 1, 3)
    (back,) = there_and_back([x], (form,), 1)
    # 1e-6: the float32 roundings of the scale and of the product.
    assert (back - x).abs().max() <= max((STEP[form] + 1e-6) * size, 2.0**-100)


@pytest.mark.parametrize(
    ("forms", "share"), [(FORMS[0] + ("fp8",), 0.637), (("int8",) * 4, 0.516)], ids=["keys raw", "all"]
)
def test_the_bytes_of_an_exchange_are_those_of_the_table(forms: tuple[str, ...], share: float) -> None:
    raw = token_bytes(("raw",) * 4, 24, 128, torch.bfloat16)
    assert token_bytes(forms, 24, 128, torch.bfloat16) / raw == pytest.approx(share, abs=5e-4)


def test_what_cannot_be_is_refused() -> None:
    x = heads(1, 2, 2, 4, torch.float32)
    with pytest.raises(ValueError, match="'zip' is none of them"):
        pack_quantised([x], ["zip"], 1)
    with pytest.raises(ValueError, match="whole head rows"):
        unpack_quantised(torch.zeros(1, 2, 13, dtype=torch.uint8), ["int8"], batch=1, head_dim=4, dtype=torch.float32)
    assert "int8" in str(why_not_on("fp8", (8, 6)))
    assert why_not_on("fp8", (8, 9)) is why_not_on("int8", (7, 5)) is None


# --- permutation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_every_head_goes_to_its_part_and_comes_back(name: str) -> None:
    *shape, parts = SHAPES[name]
    tensors = [heads(*shape, torch.float32, seed) for seed in range(3)]
    packed = pack_heads(tensors, parts)
    B, n, H, _ = tensors[0].shape
    for i, x in enumerate(tensors):
        for head in range(H):
            part, place = divmod(head, H // parts)
            assert torch.equal(packed[part, :, i, :, place], x[:, :, head].transpose(0, 1))
    assert packed.is_contiguous()
    assert packed.shape[:4] == (parts, n, 3, B)
    assert all(torch.equal(x, y) for x, y in zip(unpack_heads(packed), tensors, strict=True))


def test_with_one_part_nothing_is_copied_on_arrival() -> None:
    packed = torch.randn(1, 5, 3, 2, 4, 8)
    assert all(x.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr() for x in unpack_heads(packed))


# --- merge ------------------------------------------------------------------------------------------------------------


def halves(tokens: int = 7) -> tuple[Tensor, ...]:
    """Two partial attentions in float64, and the whole."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, size, 20, generator=generator, dtype=torch.float64) for size in (tokens, 12, 12))
    scores = q @ k.transpose(-1, -2)
    parts = [
        (scores[..., keys].softmax(-1) @ v[:, :, keys], scores[..., keys].logsumexp(-1))
        for keys in (slice(5), slice(5, 12))
    ]
    return (*parts[0], *parts[1], scores.softmax(-1) @ v, scores.logsumexp(-1))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_two_parts_merge_to_the_whole_in_place(dtype: torch.dtype) -> None:
    out, lse, part, part_lse, whole, whole_lse = halves()
    out, lse, part_lse = out.float(), lse.float(), part_lse.float()
    at = out.data_ptr(), lse.data_ptr()
    lse_merge(out, lse, part.to(dtype), part_lse)
    assert (out.data_ptr(), lse.data_ptr()) == at
    # The part's own rounding, for values of order 1.
    assert (out - whole).abs().max() <= 2 * LAST_PLACE[dtype] * part.abs().max()
    assert (lse - whole_lse).abs().max() <= 1e-5
    lse_merge(out, lse, part.to(dtype), part_lse)
    assert (out - whole).abs().max() > 0.1, "negative control: a part merged twice"


def test_an_empty_side_counts_for_nothing() -> None:
    out, lse, part, part_lse, _, _ = (x.float() for x in halves())
    nothing = torch.full_like(lse, -torch.inf)
    kept, kept_lse = out.clone(), lse.clone()
    lse_merge(kept, kept_lse, part, nothing)
    assert torch.equal(kept, out)
    assert torch.equal(kept_lse, lse)
    taken, taken_lse = torch.zeros_like(out), nothing.clone()
    lse_merge(taken, taken_lse, part, part_lse)
    assert torch.equal(taken, part)
    assert torch.equal(taken_lse, part_lse)
    empty, empty_lse = torch.zeros_like(out), nothing.clone()
    lse_merge(empty, empty_lse, torch.zeros_like(out), nothing)
    assert not empty.any()
    assert torch.equal(empty_lse, nothing)
    lse_merge(out[:, :, :0], lse[:, :, :0], part[:, :, :0], part_lse[:, :, :0])


def test_a_broken_part_shows() -> None:
    out, lse, part, part_lse, _, _ = (x.float() for x in halves())
    part_lse[0, 1, 2] = torch.nan
    lse_merge(out, lse, part, part_lse)
    assert out[0, 1, 2].isnan().all()
    assert out.isnan().sum() == 20


# --- everywhere -------------------------------------------------------------------------------------------------------


def test_tensors_that_are_not_there_take_the_reference_and_get_the_right_shapes() -> None:
    with FakeTensorMode():
        for device in ("cpu", "meta"):
            x = torch.empty(2, 5, 6, 16, dtype=torch.bfloat16, device=device)
            assert not runs_triton(x)
            assert pack_heads([x, x, x], 2).shape == (2, 5, 3, 2, 3, 16)
            packed = pack_quantised([x, x, x], FORMS[0], 2)
            assert packed.shape == (2, 5, 2 * 3 * (20 + 32 + 20))
            (q, k, v) = unpack_quantised(packed, FORMS[0], batch=2, head_dim=16, dtype=torch.bfloat16)
            assert q.shape == k.shape == v.shape == x.shape
            out, lse = torch.empty(2, 6, 5, 16, device=device), torch.empty(2, 6, 5, device=device)
            lse_merge(out, lse, x.transpose(1, 2), lse)


OVER_2_31 = 3 * 1024**3
"""Elements, so that 32-bit offsets would wrap."""


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 20 * 1024**3,
    reason="needs an NVIDIA GPU with 20 GiB free: three times 2**30 bf16 numbers are 6 GiB, packed 3 GiB, unpacked 6 GiB again",
)
@pytest.mark.gpu
@pytest.mark.parametrize("form", ["fp8", "int8"])
def test_offsets_beyond_31_bits_are_right(form: str) -> None:
    """`pytest tests/unit/kernels -m gpu` on a machine with such a GPU."""
    x = torch.zeros(1, OVER_2_31 // 3072, 24, 128, dtype=torch.bfloat16, device="cuda")
    x[:, -5:] = torch.randn(5, 24, 128, device="cuda")
    (back,) = there_and_back([x], (form,), 2)
    assert error_of_rows(back[:, -5:].cpu(), x[:, -5:].cpu()) <= STEP[form] + LAST_PLACE[torch.bfloat16]
    assert not back[:, :-5].any()
