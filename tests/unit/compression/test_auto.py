"""``auto`` compresses where that is faster, with the bits that the budget asks for, and all ranks decide alike."""

from __future__ import annotations

import pytest
from tutti.backend.compression.auto import LADDER, LOSS, TIMED, WARM, AutoPolicy, Told, Verdicts, codec_within
from tutti.backend.compression.codecs import CODECS
from tutti.backend.compression.policy import PRESETS, Preset

PRESET = PRESETS["balanced"]
TRIAL = 2 * (WARM + TIMED) + 1
"""Calls until the verdict: plain ones, a key frame, differences."""


def durations(policy: AutoPolicy, plain_us: int, compressed_us: int, calls: int) -> list[bool]:
    """Which of the calls were compressed, if they take so long."""
    told, compressed = Told(), []
    for _ in range(calls):
        preset = policy.next("kind", told)
        compressed.append(preset is not None)
        told = Told(call_us=plain_us if preset is None else compressed_us)
    return compressed


@pytest.mark.parametrize(("compressed_us", "pays"), [(500, True), (970, True), (980, False), (2000, False)])
def test_it_compresses_where_a_timed_call_is_faster_by_enough(compressed_us: int, pays: bool) -> None:
    verdicts = Verdicts()
    chosen = durations(AutoPolicy(PRESET, verdicts), 1000, compressed_us, TRIAL + 4)
    plain = WARM + TIMED
    assert chosen == [False] * plain + [True] * (plain + 1) + [pays] * 4
    assert verdicts.of("kind") is pays
    knows = AutoPolicy(PRESET, verdicts)
    assert (knows.next("kind", Told()) is None) == (knows.says == "not compressed: calls are faster without it")
    assert durations(AutoPolicy(PRESET, verdicts), 1000, compressed_us, 3) == [pays] * 3, "the next trajectory knows"


def test_calls_that_do_something_for_the_first_time_are_not_timed() -> None:
    verdicts, told = Verdicts(), Told()
    policy = AutoPolicy(PRESET, verdicts)
    slow_ones = {0, WARM + TIMED, WARM + TIMED + 1}
    for call in range(TRIAL + 1):
        preset = policy.next("kind", told)
        told = Told(call_us=(1000 if preset is None else 900) * (100 if call in slow_ones else 1))
    assert verdicts.of("kind") is True


def test_kinds_of_calls_have_verdicts_of_their_own_and_old_ones_go() -> None:
    verdicts = Verdicts()
    durations(AutoPolicy(PRESET, verdicts), 1000, 100, TRIAL + 1)
    assert verdicts.of("another kind") is None
    for number in range(100):
        verdicts.keep(number, pays=False)
    assert verdicts.of("kind") is None
    assert verdicts.of(99) is False


def test_the_ladder_climbs_in_bits_and_falls_in_loss() -> None:
    assert all(not CODECS[name].is_key for name in LADDER)
    assert [LOSS[name] for name in LADDER] == sorted((LOSS[name] for name in LADDER), reverse=True)


@pytest.mark.parametrize(
    ("current", "error", "chosen"),
    [
        ("quaternary", 0.0, "quaternary"),
        ("quaternary", 0.01, "binary"),
        ("quaternary", 0.034, "ternary"),
        ("quaternary", 0.05, "quaternary"),
        ("quaternary", 0.06, "int4"),
        ("binary", 0.6, "int8"),
        ("int8", 0.0006, "ternary"),
        ("int8", 5.0, "int8"),
    ],
)
def test_the_fewest_bits_within_the_budget_are_taken(current: str, error: float, chosen: str) -> None:
    assert codec_within(0.05, current=current, error=error) == chosen


def test_the_bits_follow_the_error_and_the_state_stays() -> None:
    verdicts = Verdicts()
    verdicts.keep("kind", pays=True)
    policy = AutoPolicy(PRESET, verdicts)
    presets: list[Preset] = []
    for error in (0.0, 0.2, 0.0003, 0.0):
        preset = policy.next("kind", Told(call_us=1, error=error))
        assert preset is not None
        presets.append(preset)
    assert [preset.residual for preset in presets] == ["quaternary", "int8", "binary", "binary"]
    assert {preset.form for preset in presets} == {PRESET.form}, "or every change would begin with a key frame"
