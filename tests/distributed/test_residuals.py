"""Compressed exchange on real gloo ranks: bases are the same bits on all of them after every step, whatever happens on the way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import RankResult, run_ranks

STEPS = 50
SHARES = [9, 8, 0, 6]
"""Tokens of each rank: uneven, and one has none."""
PLANS = ("ring=4", "ulysses=4", "ring=2,ulysses=2", "ring=4,schedule=bidirectional", "ring=4,schedule=prefetch-2")
FORMS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({}, PLANS),
    ({"order": 2, "delayed_scales": True}, ("ring=2,ulysses=2", "ring=4")),
    ({"int8_base": True}, ("ring=2,ulysses=2", "ring=4")),
]
"""How much a state keeps, and the plans that are tried with it."""
PLENTY = 2**30

pytestmark = [pytest.mark.timeout(300)]


def run(folder: Path, cases: dict[str, dict[str, Any]]) -> list[RankResult]:
    """Cases by name, which is their plan unless they say otherwise."""
    defaults = {
        "form": {},
        "limit_bytes": PLENTY,
        "trajectories": ["t"],
        "turns": 1,
        "residual": "",
        "corrupt_on": 0,
        "bad_at": [],
        "bad": "k",
        "steps": STEPS,
    }
    arguments = {"shares": SHARES, "cases": {name: {**defaults, **settings} for name, settings in cases.items()}}
    return run_ranks("tests.distributed.residual_ranks", 4, folder / "ranks", arguments, timeout_s=240)


def differing(results: list[RankResult], plan: str, step: int) -> list[str]:
    """Channels whose ends do not have the same base; every channel of the plan must have two ends at least."""
    ends: dict[str, list[int]] = {}
    for result in results:
        for name, value in result.facts[plan][step]["hashes"].items():
            ends.setdefault(name, []).append(value)
    assert ends, "no channel was used"
    return [name for name, values in ends.items() if len(set(values)) > 1]


@pytest.mark.parametrize(("form", "tried"), FORMS, ids=["plain", "order 2, delayed scales", "8-bit base"])
def test_bases_are_the_same_bits_on_every_rank_after_every_step(
    form: dict[str, Any], tried: tuple[str, ...], tmp_path: Path
) -> None:
    """Mixed codecs, and two trajectories of which there is room for one: each turn of one begins with key frames."""
    plans = {plan: {"form": form, "trajectories": ["a", "b"], "turns": 5} for plan in tried}
    one = 2 * 2 * sum(SHARES) * 128 * 2  # layers, tensors, tokens, channels, bytes of a number
    plans["ring=4"]["limit_bytes"] = 3 * one // 2 * form.get("order", 1) // (2 if form.get("int8_base") else 1)
    results = run(tmp_path, plans)
    for plan in plans:
        for step in range(STEPS):
            assert differing(results, plan, step) == [], (plan, step)
            for result in results:
                facts = result.facts[plan][step]
                assert (facts["mismatches"], facts["broken"], facts["compressed"]) == (0, 0, True)
                # One bit a number through q, k, v and the output, each losing up to a quarter; of what no payload was used for it would be 1.
                assert facts["error"] < 0.5, (plan, step)
        assert len({result.facts[plan][-1]["evictions"] for result in results}) == 1
    assert results[0].facts["ring=4"][-1]["evictions"] >= STEPS // 5 - 1, "they do not fit together"
    assert results[0].facts["ring=2,ulysses=2"][-1]["evictions"] == 0, "the control: these do"


@pytest.mark.parametrize("rank", range(2))
def test_a_base_that_goes_bad_is_found_at_the_next_hash_and_repaired_in_the_following_call(
    rank: int, tmp_path: Path
) -> None:
    at = 6
    plans = {plan: {"residual": "quaternary", "corrupt_at": at, "corrupt_on": rank, "steps": 12} for plan in PLANS[:3]}
    results = run(tmp_path, plans)
    for plan in plans:
        keys = [step["key"] for step in results[0].facts[plan]]
        assert keys == [step == at + 1 for step in range(12)], (
            "one key frame, in the call after the one that met the base"
        )
        assert differing(results, plan, at) != [], "the control: it was bad"
        for step in [*range(at), *range(at + 1, 12)]:
            assert differing(results, plan, step) == [], (plan, step)
        found = [result.facts[plan][at + 1]["mismatches"] for result in results]
        assert sum(found) >= 1


def test_few_bits_travel_and_more_bits_lose_less(tmp_path: Path) -> None:
    residuals = ("int8", "int4", "quaternary", "binary")
    cases = {residual: {"plan": "ring=2,ulysses=2", "residual": residual, "steps": 8} for residual in residuals}
    facts, last = run(tmp_path, cases)[0].facts, {}
    for residual in residuals:
        first, second, *_, end = facts[residual]
        last[residual] = end["bytes"], end["error"]
        assert first["bytes"] > second["bytes"] or residual == "int8", "the key frame is larger"
    sizes, errors = zip(*last.values(), strict=True)
    assert list(sizes) == sorted(sizes, reverse=True)
    assert list(errors) == sorted(errors)


def test_a_trajectory_without_room_travels_uncompressed_on_every_rank(tmp_path: Path) -> None:
    results = run(tmp_path, {"ring=4": {"residual": "binary", "limit_bytes": 100, "steps": 4}})
    for result in results:
        steps = result.facts["ring=4"]
        assert [step["compressed"] for step in steps] == [True, False, False, False]
        assert [step["error"] for step in steps[1:]] == [0.0] * 3
        assert [step["hashes"] for step in steps] == [{}] * 4, "nothing is kept, not even in the first call"
        assert [step["note"][:15] for step in steps] == ["", *["not compressed:"] * 3]


def test_a_trajectory_too_large_with_a_trend_goes_on_with_bases_in_8_bits_on_every_rank(tmp_path: Path) -> None:
    """The bound is less than the states of order 2 take on the largest rank, and not on all, and more than bases in 8 bits take."""
    bound, plans = 30_000, PLANS[:3]
    asked = {"residual": "quaternary", "form": {"order": 2}, "steps": 10}
    few = {plan: {**asked, "limit_bytes": bound} for plan in plans}
    results = run(tmp_path, few | {f"plenty {plan}": {"plan": plan, **asked} for plan in plans})
    for plan in plans:
        facts = [result.facts[plan] for result in results]
        for step in range(1, 10):
            assert differing(results, plan, step) == [], (plan, step)
        for steps in facts:
            assert all(step["compressed"] and not step["key"] for step in steps), "nobody asks for a key frame"
            assert [step["evictions"] for step in steps] == [0, *[1] * 9]
            assert [(step["mismatches"], step["broken"]) for step in steps] == [(0, 0)] * 10
            first, second, *later = (step["bytes"] for step in steps)
            assert first == second, "of key frames"
            assert not first or max(later) < 0.6 * first
        for step in range(10):
            (note,) = {steps[step]["note"] for steps in facts}
            assert ("bases kept in 8 bits" in note) == (step > 0)
        sizes = re.fullmatch(
            r"bases kept in 8 bits: ([\d.]+) kB instead of ([\d.]+) kB or more, which do not fit into 30.0 kB", note
        )
        assert sizes, note
        assert float(sizes[1]) < 30 < float(sizes[2])
    for plan in plans:  # the control
        for result in results:
            steps, less = result.facts[f"plenty {plan}"], result.facts[plan]
            assert [(step["evictions"], step["note"]) for step in steps] == [(0, "")] * 10
            # What a trend is worth, on a walk that goes on in its direction; bases that are no use would lose ten times as much.
            assert max(step["error"] for step in less) <= 2 * max(step["error"] for step in steps)
            first, second, *_ = (step["bytes"] for step in steps)
            assert not first or second < 0.6 * first
    needed = {result.facts["plenty ulysses=4"][-1]["state_bytes"] > bound for result in results}
    assert needed == {True, False}, "no rank could have decided it from its own need"


@pytest.mark.parametrize("bad", ["k", "q"])
def test_a_number_that_is_not_finite_on_one_rank_spoils_one_call_and_no_more(bad: str, tmp_path: Path) -> None:
    """A key of rank 1, which reaches every query; or a query that it sends to rank 0 at most (and of which torch's attention on a CPU makes zeros)."""
    at = 4
    results = run(
        tmp_path, {plan: {"residual": "quaternary", "bad_at": [at], "bad": bad, "steps": 9} for plan in PLANS}
    )
    for plan in PLANS:
        facts = [result.facts[plan] for result in results]
        assert [step["lost_bad_numbers"] for steps in facts for step in steps] == [0] * 4 * 9, "nothing looks whole"
        if bad == "k":
            assert all(steps[at]["bad_numbers"] for steps, tokens in zip(facts, SHARES, strict=True) if tokens)
        is_seen = bad == "k" or "ulysses" in plan  # queries go nowhere along a ring
        for steps in facts:
            assert [step["key"] for step in steps] == [is_seen and step == at + 1 for step in range(9)]
            assert [step["bad_numbers"] for step in steps[:at] + steps[at + 1 :]] == [0] * 8
            assert all(step["error"] < 0.5 for step in steps[:at] + steps[at + 1 :])
            assert {step["note"] for step in steps} == {""}
        broken = [steps[at + 1]["broken"] for steps in facts]
        assert (sum(broken) > 0) == is_seen
        assert bad == "k" or (broken[0] == broken[1] and broken[2:] == [0, 0]), "who sends it can tell, and who gets it"
        for step in range(9):
            assert differing(results, plan, step) == [], (plan, step)


def test_numbers_that_are_never_finite_end_compression_on_every_rank(tmp_path: Path) -> None:
    results = run(tmp_path, {"ring=2,ulysses=2": {"residual": "int8", "bad_at": list(range(2, 9)), "steps": 9}})
    for result in results:
        steps = result.facts["ring=2,ulysses=2"]
        assert [step["key"] for step in steps] == [*[False] * 3, True, True, True, *[False] * 3]
        assert [step["compressed"] for step in steps] == [*[True] * 5, *[False] * 4]
        assert [step["note"] for step in steps] == [""] * 5 + ["compression paused: numbers that are not finite"] * 4
        assert [step["lost_bad_numbers"] for step in steps] == [0] * 9
