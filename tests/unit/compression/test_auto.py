"""``auto`` compresses where that is faster, with the bits that each layer asks for, and all ranks decide alike."""

from __future__ import annotations

import random

import pytest
from tutti.backend.compression.allocation import LOSS
from tutti.backend.compression.auto import KINDS_KNOWN, TIMED, AutoPolicy, Told, Trials
from tutti.backend.compression.policy import LAYER_GROUPS, PRESETS, Preset

PRESET = PRESETS["balanced"]
PLAIN = 1 + TIMED
TRIAL = PLAIN + 1 + 1 + TIMED
"""Calls until the verdict: plain ones, a key frame, differences; the first of each sort is not timed."""


def run(policy: AutoPolicy, plain_us: int, compressed_us: int, calls: int, kind: str = "kind") -> list[bool]:
    """Which of the calls were compressed, if they take so long."""
    told, compressed = Told(), []
    for _ in range(calls):
        preset = policy.next(kind, "branch", told)
        compressed.append(preset is not None)
        told = Told(call_us=plain_us if preset is None else compressed_us)
    return compressed


@pytest.mark.parametrize(("compressed_us", "pays"), [(500, True), (970, True), (980, False), (2000, False)])
def test_it_compresses_where_a_timed_call_is_faster_by_enough(compressed_us: int, pays: bool) -> None:
    trials = Trials()
    chosen = run(AutoPolicy(PRESET, trials), 1000, compressed_us, TRIAL + 4)
    assert chosen == [False] * PLAIN + [True] * (TRIAL - PLAIN) + [pays] * 4
    assert trials.of("kind").pays is pays
    knows = AutoPolicy(PRESET, trials)
    assert run(knows, 1000, compressed_us, 3) == [pays] * 3, "the next trajectory knows"
    assert knows.says == ("" if pays else "not compressed: calls are faster without it")


@pytest.mark.parametrize("pays", [True, False])
def test_jobs_of_a_few_steps_come_to_a_verdict_together(pays: bool) -> None:
    trials = Trials()
    for _ in range(8):
        run(AutoPolicy(PRESET, trials), 1000, 900 if pays else 1100, 3)
    assert trials.of("kind").pays is pays


def test_first_calls_and_key_frames_are_not_timed() -> None:
    trials, told = Trials(), Told()
    policy = AutoPolicy(PRESET, trials)
    slow_ones = {0, PLAIN, PLAIN + 1}
    for call in range(TRIAL + 1):
        preset = policy.next("kind", "branch", told)
        told = Told(call_us=(1000 if preset is None else 900) * (100 if call in slow_ones else 1))
    assert (trials.of("kind").plain_us, trials.of("kind").compressed_us) == ([1000] * TIMED, [900] * TIMED)


def test_kinds_that_alternate_are_timed_apart() -> None:
    """One is faster compressed and the other is not; the control is that both verdicts come, and differ."""
    trials, told = Trials(), Told()
    policy = AutoPolicy(PRESET, trials)
    for call in range(4 * TRIAL):
        kind = ("small", "large")[call % 2]
        preset = policy.next(kind, kind, told)
        plain_us, compressed_us = {"small": (100, 200), "large": (10_000, 3000)}[kind]
        told = Told(call_us=plain_us if preset is None else compressed_us)
    assert {kind: trials.of(kind).pays for kind in ("small", "large")} == {"small": False, "large": True}


def test_old_kinds_go() -> None:
    trials = Trials()
    trials.of("kind").pays = False
    for number in range(KINDS_KNOWN):
        trials.of(number)
    assert trials.of("kind").pays is None


def known(preset: Preset = PRESET) -> AutoPolicy:
    """One that compresses from its first call on."""
    trials = Trials()
    trials.of("kind").pays = True
    return AutoPolicy(preset, trials)


def told(**errors: float) -> Told:
    """By group: ``g3=0.1``."""
    return Told(call_us=1, errors=tuple(errors.get(f"g{group}", 0.0) for group in range(LAYER_GROUPS)))


def codecs(policy: AutoPolicy, news: Told, *groups: int, branch: str = "branch") -> list[str]:
    """What the next call takes for some layer groups."""
    preset = policy.next("kind", branch, news)
    assert preset is not None
    assert preset.form == PRESET.form, "or every change would begin with a key frame"
    return [preset.codec(is_key=False, group=group).name for group in groups]


def test_a_layer_group_has_the_bits_that_its_own_error_asks_for() -> None:
    assert codecs(known(), told(g0=0.4, g1=0.0003), 0, 1, 2) == ["int8", "binary", "quaternary"], "the third: not known"
    assert codecs(known(), told(g0=0.0003, g1=0.4), 0, 1, 2) == ["binary", "int8", "quaternary"], "the control: swapped"


def test_an_error_counts_with_the_codec_that_lost_it() -> None:
    policy = known()
    assert codecs(policy, told(g0=0.4, g1=0.0003), 0, 1) == ["int8", "binary"]
    residual = 0.4 / LOSS["quaternary"]
    assert codecs(policy, told(g0=LOSS["int8"] * residual, g1=0.0003), 0, 1) == ["int8", "binary"], "the same residual"
    assert codecs(policy, told(g0=0.0009, g1=0.0009), 0, 1) == ["ternary", "binary"], (
        "what eight bits lose is of a larger residual than what one bit loses"
    )


def test_a_layer_that_was_not_measured_keeps_its_last_estimate_and_calls_that_measure_nothing_change_nothing() -> None:
    policy = known()
    assert codecs(policy, Told(), 0, 1) == ["quaternary"] * 2, "the preset's, before anything is known"
    assert codecs(policy, told(g0=0.4), 0, 1) == ["int8", "quaternary"]
    assert codecs(policy, told(g1=0.0003), 0, 1) == ["int8", "binary"]
    assert codecs(policy, Told(call_us=1), 0, 1) == ["int8", "binary"]


def test_every_rank_chooses_the_same_whichever_branch_is_its_own() -> None:
    """Alternating on one rank, or one on each half of the group: what is chosen follows from what was told alone."""
    alternating, first, second = known(), known(), known()
    chance, found = random.Random(3), [["quaternary"] * LAYER_GROUPS]
    for call in range(40):
        measured = {group: 10 ** chance.uniform(-2, 0) for group in chance.sample(range(LAYER_GROUPS), 8)}
        news = told(**{f"g{group}": size * LOSS[found[0][group]] for group, size in measured.items()})
        found = [
            codecs(policy, news, *range(LAYER_GROUPS), branch=branch)
            for policy, branch in ((alternating, ("cond", "uncond")[call % 2]), (first, "cond"), (second, "uncond"))
        ]
        assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 2, "the control: there was something to choose"


def test_calls_that_were_not_compressed_tell_nothing_and_leave_what_is_known() -> None:
    """Two kinds of calls alternate, of which one is not compressed."""
    trials = Trials()
    trials.of("kind").pays, trials.of("plain").pays = True, False
    policy = AutoPolicy(PRESET, trials)
    assert codecs(policy, told(g0=0.4), 0) == ["int8"]
    assert policy.next("plain", "branch", told(g0=0.4 * LOSS["int8"] / LOSS["quaternary"])) is None
    assert policy.spread == ""
    assert codecs(policy, Told(call_us=1), 0) == ["int8"]
    assert policy.spread == "8 bits in every layer"


def test_the_spread_of_the_bits_is_told() -> None:
    policy = known()
    codecs(policy, Told())
    assert policy.spread == ""
    codecs(policy, told(g0=0.0003, g1=0.1, g2=0.034))
    assert policy.spread == "1 to 4 bits by layer"
