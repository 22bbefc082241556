"""Every codec: both ends get the same bits, at every size, in every dtype, whatever was sent before; and bad numbers stay visible."""

from __future__ import annotations

import random
import zlib
from itertools import cycle

import pytest
import torch
from torch import Tensor
from tutti.backend.compression.codecs import CODECS
from tutti.backend.compression.state import StateForm

from tests.support.bits import same_bits_or_nan
from tests.unit.compression.ends import FORMS, KEYS, RESIDUALS, Ends, error, shape_of
from tests.unit.kernels.heads import DTYPES
from tests.unit.kernels.walks import walk

SHAPES = ((1, 1, 1), (1, 1, 129), (7, 3, 5), (5, 2, 9), (33, 3, 16), (2, 5, 1))
"""(Rows, heads, head_dim): heads * head_dim of 1, 129, 15, 18, 48 and 5."""
BADS = {"NaN": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def assert_same(ends: Ends, sent: list[Tensor], got: list[Tensor]) -> None:
    assert all(same_bits_or_nan(a, b) for a, b in zip(sent, got, strict=True))
    first, second = ends.hashes
    assert first == second


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("codec", RESIDUALS)
def test_both_ends_have_the_same_bits_after_every_step_of_a_codec(codec: str, form: StateForm) -> None:
    for shape in SHAPES:
        for dtype in DTYPES.values():
            ends = Ends(shape_of(*shape), dtype, form, matrices=2)
            first = True
            for x in walk(shape[0], shape[1] * shape[2], steps=7, dtype=dtype):
                sent, got = ends.send("key-int8" if first else codec, x, -x)
                assert_same(ends, sent, got)
                assert sent[0].dtype == dtype
                first = False
            assert [seen.mismatches + seen.broken for seen in ends.look()] == [0, 0]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_codecs_may_change_at_any_step_and_key_frames_may_come_in_between(dtype: torch.dtype, form: StateForm) -> None:
    chosen = random.Random(zlib.crc32(f"{dtype}{form}".encode()))
    for shape in SHAPES:
        ends = Ends(shape_of(*shape), dtype, form, matrices=3)
        for step, x in enumerate(walk(shape[0], shape[1] * shape[2], steps=30, dtype=dtype)):
            codec = chosen.choice(KEYS) if step % 11 == 0 else chosen.choice(RESIDUALS)
            assert_same(ends, *ends.send(codec, x, x, 2 * x))
        assert [seen.mismatches for seen in ends.look()] == [0, 0]


@pytest.mark.parametrize("rows", [1, 3])
def test_any_number_of_channels_goes(rows: int) -> None:
    """All from 1 to 129, each with another codec."""
    codecs = cycle(RESIDUALS)
    for channels in range(1, 130):
        ends, residual = Ends(shape_of(rows, 1, channels)), next(codecs)
        for codec, x in zip(["key-int4", residual, residual], walk(rows, channels, steps=3), strict=True):
            assert_same(ends, *ends.send(codec, x))


def test_ends_whose_bases_differ_do_not_pass_for_equal() -> None:
    """Negative control of the tests above."""
    ends, (first, second) = Ends(shape_of(7, 3, 5)), walk(7, 15, steps=2)
    ends.send("raw", first)
    ends.receiver.states[0].kept[0][3, 4] += 0.5
    sent, got = ends.send("quaternary", second)
    assert not same_bits_or_nan(sent[0], got[0])
    assert ends.hashes[0] != ends.hashes[1]
    assert [seen.mismatches for seen in ends.look()] == [0, 1]


@pytest.mark.parametrize("codec", RESIDUALS)
def test_what_is_not_sent_comes_again(codec: str) -> None:
    """The same x once more: what each residual lacks is what the next one is made of."""
    ends, (first, x) = Ends(shape_of(33, 3, 16)), walk(33, 48, steps=2)
    ends.send("raw", first)
    errors = [error(ends.send(codec, x)[1][0], x) for _ in range(8)]
    assert errors[-1] < 0.5 * errors[0], "the control: without feedback every error would be the first"


@pytest.mark.parametrize("codec", RESIDUALS)
def test_a_residual_before_a_key_frame_is_refused_at_either_end(codec: str) -> None:
    ends, x = Ends(shape_of(4, 1, 8)), torch.ones(4, 8)
    with pytest.raises(ValueError, match="key frame first"):
        ends.sender.encode([x], CODECS[codec])
    payload, _ = ends.sender.encode([x], CODECS["raw"])
    payload = torch.zeros(4096, dtype=torch.uint8)[: 16 + CODECS[codec].payload_bytes(shape_of(4, 1, 8), x.dtype)]
    with pytest.raises(ValueError, match="key frame first"):
        ends.receiver.decode(payload, CODECS[codec])


@pytest.mark.parametrize("form", [FORMS["plain"], FORMS["8-bit base"]], ids=["plain", "8-bit base"])
@pytest.mark.parametrize("codec", RESIDUALS)
def test_a_residual_of_zeros_keeps_the_value(codec: str, form: StateForm) -> None:
    ends, (x,) = Ends(shape_of(5, 3, 5), form=form), walk(5, 15, steps=1)
    (known,), _ = ends.send("raw", x)
    if form.int8_base:  # what is kept is its quantised value
        (known,), _ = ends.send("int8", x)
        known = base_of(ends)
    for _ in range(3):
        (sent,), (got,) = ends.send(codec, known)
        assert same_bits_or_nan(sent, got)
        assert torch.equal(got, known)


def base_of(ends: Ends) -> Tensor:
    """What the sender predicts."""
    with ends.sender.states[0].updated(by_key_frame=False) as value:
        return value.clone()


@pytest.mark.parametrize("bad", BADS.values(), ids=BADS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("codec", [*KEYS, *RESIDUALS])
def test_a_bad_number_stays_visible_at_both_ends_is_reported_and_is_healed_by_a_key_frame(
    codec: str, form: StateForm, bad: float
) -> None:
    ends, steps = Ends(shape_of(7, 2, 9), torch.bfloat16, form), list(walk(7, 18, steps=5, dtype=torch.bfloat16))
    steps[2] = steps[2].clone()
    steps[2][4, 11] = bad
    for x in steps[:2]:
        ends.send("key-int8" if CODECS[codec].is_key or x is steps[0] else codec, x)
    assert [seen.broken for seen in ends.look()] == [0, 0], "the control"
    (sent,), (got,) = ends.send(codec, steps[2])
    assert same_bits_or_nan(sent, got)
    assert not got[4, 9:].isfinite().all(), "the head of the bad number"
    if codec == "raw":
        assert same_bits_or_nan(got, steps[2]), "as it is"
    elif codec != "low-rank":  # whose products spread it over everything
        assert got[4, 9:].isnan().all()
        assert got[[0, 1, 2, 3, 5, 6]].isfinite().all(), "no other row is touched"
    assert [seen.broken for seen in ends.look()] == [1, 1]
    (sent,), (got,) = ends.send("key-int8", steps[3])
    assert same_bits_or_nan(sent, got)
    assert error(got, steps[3]) < 0.01
    residual = RESIDUALS[0] if CODECS[codec].is_key else codec
    (sent,), (got,) = ends.send(residual, steps[4])
    assert same_bits_or_nan(sent, got)
    assert error(got, steps[4]) < 0.5
    assert [(seen.broken, seen.mismatches) for seen in ends.look()] == [(0, 0)] * 2


@pytest.mark.parametrize("codec", RESIDUALS)
def test_a_row_that_is_broken_stays_so_until_a_key_frame_and_says_so_every_time(codec: str) -> None:
    """Also behind a raw key frame that brought the bad number itself."""
    ends, steps = Ends(shape_of(7, 2, 9)), list(walk(7, 18, steps=3))
    steps[0] = steps[0].clone()
    steps[0][2, 3] = float("nan")
    ends.send("raw", steps[0])
    assert [seen.broken for seen in ends.look()] == [1, 1]
    for x in steps[1:]:
        (sent,), (got,) = ends.send(codec, x)
        assert same_bits_or_nan(sent, got)
        assert got[2].isnan().any()
        assert [seen.broken for seen in ends.look()] == [1, 1]


@pytest.mark.parametrize("codec", KEYS)
def test_a_key_frame_of_huge_and_tiny_numbers_is_not_broken(codec: str) -> None:
    """Control of the above: the greatest finite numbers are finite, and zeros too."""
    x = torch.zeros(3, 8, dtype=torch.float16)
    x[1, 3], x[2, 1] = 65504.0, 6e-8
    ends = Ends(shape_of(3, 1, 8), torch.float16)
    (sent,), (got,) = ends.send(codec, x)
    assert same_bits_or_nan(sent, got)
    assert got.isfinite().all()
    assert [seen.broken for seen in ends.look()] == [0, 0]


def test_the_table_of_codecs_names_each_by_its_own_name() -> None:
    assert {name: codec.name for name, codec in CODECS.items()} == {name: name for name in CODECS}
    assert set(KEYS) == {"raw", "key-int8", "key-int4"}
