"""``auto`` compresses where that is faster, with the bits that the budget asks for, and all ranks decide alike."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.compression.auto import KINDS_KNOWN, LADDER, LOSS, TIMED, AutoPolicy, Told, Trials, codec_within
from tutti.backend.compression.codecs import CODECS
from tutti.backend.compression.policy import PRESETS, Preset
from tutti.backend.compression.state import MatrixShape, ResidualState, StateForm

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


def test_the_ladder_climbs_in_bits_and_falls_in_loss() -> None:
    assert all(not CODECS[name].is_key for name in LADDER)
    assert [LOSS[name] for name in LADDER] == sorted((LOSS[name] for name in LADDER), reverse=True)


@pytest.mark.parametrize("name", LADDER)
def test_what_a_codec_is_said_to_lose_of_a_gaussian_residual_is_what_it_loses(name: str) -> None:
    shape = MatrixShape(rows=256, heads=4, head_dim=128)
    state = ResidualState(shape, torch.float32, torch.device("cpu"), StateForm())
    x = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    value = x
    for codec, sent in ((CODECS["raw"], torch.zeros_like(x)), (CODECS[name], x)):
        payload = torch.empty(codec.payload_bytes(shape, x.dtype), dtype=torch.uint8)
        value = codec.encode(sent, state, payload)
    assert float((value - x).norm() / x.norm()) == pytest.approx(LOSS[name], rel=0.02)


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
    trials = Trials()
    trials.of("kind").pays = True
    policy = AutoPolicy(PRESET, trials)
    presets: list[Preset] = []
    for error in (0.0, 0.2, 0.0003, 0.0):
        preset = policy.next("kind", "branch", Told(call_us=1, error=error))
        assert preset is not None
        presets.append(preset)
    assert [preset.residual for preset in presets] == ["quaternary", "int8", "binary", "binary"]
    assert {preset.form for preset in presets} == {PRESET.form}, "or every change would begin with a key frame"
