"""A channel: exact bytes, a header that finds lost and foreign payloads, and what the watch counts."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from tutti.backend.compression.channel import (
    HEADER_BYTES,
    LEAST_ERROR,
    MEASURED_ONE_OF,
    MOST_ERROR,
    Channel,
    Watch,
    payload_bytes,
)
from tutti.backend.compression.codecs import CODECS
from tutti.backend.compression.policy import LAYER_GROUPS
from tutti.backend.compression.state import StateForm

from tests.unit.compression.ends import CPU, FORMS, KEYS, RESIDUALS, Ends, error, shape_of
from tests.unit.kernels.walks import walk

FLUX = shape_of(1088, 24, 128)
"""A rank's share of 4352 tokens, on four ranks."""
BF16 = torch.bfloat16
STEPS = 28


@pytest.mark.parametrize(
    ("codec", "content"),
    [
        ("raw", 6_684_672),
        ("binary", 426_112),
        ("quaternary", 843_904),
        ("quaternary-compactfusion", 843_904),
        ("low-rank", 66_816),
        ("key-int4", 1088 * 24 * (64 + 4)),
        ("key-int8", 1088 * 24 * (128 + 4)),
        ("ternary", 1088 * 615 + 2 * (1088 + 3072)),
    ],
)
def test_a_payload_has_exactly_the_bytes_of_its_format(codec: str, content: int) -> None:
    aligned = -(-content // 16) * 16
    assert payload_bytes(CODECS[codec], [FLUX], BF16) == 16 + aligned
    assert payload_bytes(CODECS[codec], [FLUX, FLUX], BF16) == 16 + 2 * aligned
    assert CODECS[codec].payload_bytes(FLUX, BF16) == content


@pytest.mark.parametrize(
    ("key", "residual", "least"),
    [("key-int4", "binary", 14), ("key-int4", "quaternary", Fraction(76, 10)), ("key-int4", "low-rank", 50)],
)
def test_a_whole_trajectory_key_frame_included_is_so_much_smaller_than_in_bfloat16(
    key: str, residual: str, least: Fraction
) -> None:
    """One call with key frames and 27 with residuals."""

    def ratio(key: str) -> Fraction:
        sent = payload_bytes(CODECS[key], [FLUX], BF16) + (STEPS - 1) * payload_bytes(CODECS[residual], [FLUX], BF16)
        return Fraction(STEPS * FLUX.rows * FLUX.channels * BF16.itemsize, sent)

    assert ratio(key) >= least
    assert ratio("raw") < least, "the control: with an exact first step it is not"


@pytest.mark.parametrize("codec", [*KEYS, *RESIDUALS])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 129), (7, 3, 5)])
def test_what_is_sent_has_the_size_that_both_ends_expect(codec: str, shape: tuple[int, int, int]) -> None:
    ends, (x, y) = Ends(shape_of(*shape), matrices=2), walk(shape[0], shape[1] * shape[2], steps=2)
    ends.send("raw", x, x)
    payload, _ = ends.sender.encode([y, y], CODECS[codec])
    assert payload.shape == (payload_bytes(CODECS[codec], ends.receiver.shapes, torch.float32),)
    ends.receiver.decode(payload, CODECS[codec])
    with pytest.raises(ValueError, match=r"argument|shorter|longer"):
        ends.send(codec, y)  # two matrices, one tensor


@pytest.mark.parametrize("residual", RESIDUALS)
def test_a_lost_payload_is_found_by_the_next_one(residual: str) -> None:
    ends, steps = Ends(shape_of(7, 3, 5)), walk(7, 15, steps=4)
    ends.send("raw", next(steps))
    ends.send(residual, next(steps), lost=True)
    assert [seen.mismatches for seen in ends.look()] == [0, 0]
    ends.send(residual, next(steps))
    assert [seen.mismatches for seen in ends.look()] == [0, 1]
    ends.send(residual, next(steps))
    assert [seen.mismatches for seen in ends.look()] == [0, 1], "and by all that follow"


def test_a_payload_that_comes_twice_is_found() -> None:
    ends, (first, second) = Ends(shape_of(7, 3, 5)), walk(7, 15, steps=2)
    ends.send("raw", first)
    payload, _ = ends.sender.encode([second], CODECS["int8"])
    ends.receiver.decode(payload, CODECS["int8"])
    assert ends.look()[1].mismatches == 0
    ends.receiver.decode(payload, CODECS["int8"])
    assert ends.look()[1].mismatches == 1


def test_a_lost_key_frame_is_found_by_number() -> None:
    """A key frame refers to nothing; still it must be the one that is due."""
    ends, steps = Ends(shape_of(7, 3, 5)), walk(7, 15, steps=3)
    for lost in (False, True, False):
        ends.send("key-int8", next(steps), lost=lost)
    assert ends.look()[1].mismatches == 1


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_one_wrong_bit_in_anything_that_the_next_value_depends_on_is_found(form: StateForm) -> None:
    kinds = 1 + form.int8_base + (form.order == 2) + 2 * form.delayed_scales
    for number in range(kinds):
        ends = Ends(shape_of(7, 3, 5), form=form)
        for step, x in enumerate(walk(7, 15, steps=4)):
            if step == 3:
                kept = ends.receiver.states[0].kept
                assert len(kept) == kinds
                kept[number].view(-1).view(torch.uint8)[5] ^= 1
            ends.send("quaternary" if step else "raw", x)
        assert [seen.mismatches for seen in ends.look()] == [0, 1], number


def test_the_watch_counts_bytes_once_and_begins_anew_with_every_look() -> None:
    ends, (first, second) = Ends(shape_of(7, 3, 5), matrices=2), walk(7, 15, steps=2)
    ends.send("raw", first, first)
    ends.send("binary", second, second)
    sent, got = ends.look()
    assert sent.raw_bytes == 2 * 2 * 7 * 15 * 4
    assert sent.payload_bytes == 2 * HEADER_BYTES + 2 * 432 + 2 * 64, "420 and 7 * 2 + 2 * 22 bytes, aligned"
    assert (got.raw_bytes, got.payload_bytes) == (0, 0), "who gets it has sent nothing"
    assert ends.look()[0] == type(sent)(), "nothing since"


def test_an_error_is_measured_in_one_of_eight_transfers_and_layers_take_turns() -> None:
    watch = Watch(CPU)
    channels = [
        Channel([shape_of(5, 1, 8)], torch.float32, CPU, StateForm(), watch, group=group)
        for group in range(MEASURED_ONE_OF)
    ]
    for transfer in range(3):
        for channel, x in zip(channels, walk(5, 8, steps=len(channels), seed=transfer), strict=False):
            _, (value,) = channel.encode([x], CODECS["key-int4" if transfer == 0 else "binary"])
            seen = watch.look()
            if seen.error:
                assert seen.error == pytest.approx(error(value, x), rel=1e-4)
    measured = []
    for channel, x in zip(channels, walk(5, 8, steps=len(channels), seed=9), strict=False):
        channel.encode([x], CODECS["binary"])
        measured.append(watch.look().error > 0)
    assert sum(measured) == 1


def test_an_error_is_that_of_all_tensors_and_channels_of_a_layer() -> None:
    """Keys may be calm and values restless: whichever was looked at alone would speak for both."""
    watch = Watch(CPU)
    pair, single = (
        Channel([shape_of(6, 1, 8)] * tensors, torch.float32, CPU, StateForm(), watch, group=3) for tensors in (2, 1)
    )
    calm = list(walk(6, 8, steps=2 * MEASURED_ONE_OF))
    for transfer in range(2 * MEASURED_ONE_OF):
        restless, other = torch.randn(6, 8), torch.randn(6, 8)
        codec = CODECS["binary" if transfer else "key-int8"]
        values = [*pair.encode([calm[0], restless], codec)[1], *single.encode([other], codec)[1]]
        seen = watch.look()
        if seen.error:
            tensors = torch.stack([calm[0], restless, other])
            assert seen.error == pytest.approx(error(torch.stack(values), tensors), rel=1e-4)
            assert seen.error > 2 * error(values[0], calm[0]), "the control: keys alone say less"
            return
    raise AssertionError("A layer was never measured.")


@pytest.mark.parametrize("first_turn", [0, 5])
def test_ranks_with_other_first_turns_measure_other_channels_in_a_call(first_turn: int) -> None:
    def measured(first_turn: int) -> list[set[int]]:
        """Groups by call."""
        watch = Watch(CPU, first_turn)
        channels = [
            Channel([shape_of(5, 1, 8)], torch.float32, CPU, StateForm(), watch, group=group)
            for group in range(2 * MEASURED_ONE_OF)
        ]
        found = []
        for transfer in range(1 + MEASURED_ONE_OF):
            for seed, channel in enumerate(channels):
                x = next(walk(5, 8, steps=1, seed=100 * transfer + seed))
                channel.encode([x], CODECS["binary" if transfer else "key-int8"])
            errors = watch.look().errors
            found.append({group for group, error in enumerate(errors) if error})
        assert found[0] == set(), "the loss of a key frame is not the residual codec's"
        return found[1:]

    own, other = measured(first_turn), measured(first_turn + 3)
    assert set().union(*own) == set(range(2 * MEASURED_ONE_OF)), "each has its turn"
    assert all(len(groups) == 2 for groups in own)
    assert not any(a & b for a, b in zip(own, other, strict=True))


def test_errors_are_told_by_layer_group_and_of_all_together() -> None:
    watch = Watch(CPU)
    assert watch.look().errors == ()
    watch.lost(torch.ones(2, 2), torch.zeros(2, 2), 3)
    watch.lost(3 * torch.ones(2, 2), 3 * torch.ones(2, 2), 5)
    seen = watch.look()
    assert len(seen.errors) == LAYER_GROUPS
    assert {group: error for group, error in enumerate(seen.errors) if error} == {3: 1.0, 5: LEAST_ERROR}, (
        "what was lossless was measured all the same"
    )
    assert seen.error == pytest.approx(10**-0.5), "by energy"
    assert watch.look().errors == (), "anew with every look"


def test_an_error_beyond_all_measure_stays_a_number() -> None:
    watch = Watch(CPU)
    watch.lost(torch.full((2, 2), 1e-19), torch.full((2, 2), 1e18))
    assert (watch.look().errors[0], watch.look().error) == (MOST_ERROR, 0.0)


def test_what_is_not_finite_is_broken_and_no_measured_error() -> None:
    x = torch.randn(5, 8)
    x[1, 1] = torch.nan
    watch = Watch(CPU)
    watch.lost(x, x)
    assert watch.look().error == 0.0
    watch.lost(torch.ones(2, 2), torch.zeros(2, 2))
    assert watch.look().error == 1.0, "the control"
