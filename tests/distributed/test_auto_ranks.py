"""``compression=auto`` on real gloo ranks: each layer has the bits that its own changes ask for, all ranks choose alike, and bases stay the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from tutti.backend.compression.allocation import BITS

from tests.support.ranks import RankResult, run_ranks

CALM, RESTLESS = 0.02, 0.6
STEPS = 24
"""Of two calls where branches alternate. In the second half of them layers have changed places."""
MOTIONS = [[CALM, RESTLESS, CALM]] * (STEPS // 2) + [[RESTLESS, CALM, CALM]] * (STEPS // 2)
COMPARED = [STEPS // 2 - 1, STEPS - 1]
"""Steps whose outcome is compared with the exact one: the last of either half."""
SHARES = {
    "ring=4": [9, 8, 0, 6],
    "ulysses=4": [9, 8, 0, 6],
    "ring=2,ulysses=2": [9, 8, 0, 6],
    "cfg=2,ring=2": [9, 14],
}
"""Plan -> tokens of each rank of a sequence: uneven, and one has none. With ``cfg=2`` each half of the group has a branch of its own."""
SETTLED = 4
"""Calls at the end of either half, by when every layer was measured under what it does now."""

pytestmark = [pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[RankResult]:
    cases = {plan: {"shares": shares, "motions": MOTIONS, "compared": COMPARED} for plan, shares in SHARES.items()}
    folder = tmp_path_factory.mktemp("auto") / "ranks"
    return run_ranks("tests.distributed.auto_ranks", 4, Path(folder), {"cases": cases}, timeout_s=240)


@pytest.mark.parametrize("plan", SHARES)
def test_each_layer_has_the_bits_that_its_own_changes_ask_for(plan: str, results: list[RankResult]) -> None:
    bits = [[BITS[name] for name in call["codecs"]] for call in results[0].facts[plan]]
    half = len(bits) // 2
    assert set(map(tuple, bits[:2])) == {(2.0, 2.0, 2.0)}, "before anything is known: the preset's"
    for before, after in zip(bits[half - SETTLED : half], bits[-SETTLED:], strict=True):
        assert before[1] >= 4 > 2 > before[0] == before[2] == 1
        assert after[0] >= 4 > 2 > after[1] == after[2] == 1, "and the other way round once layers have changed places"
    last = results[0].facts[plan][-1]
    assert f"1 to {max(bits[-1]):g} bits by layer" in last["lines"]


@pytest.mark.parametrize("plan", SHARES)
def test_all_ranks_choose_the_same_and_their_bases_stay_the_same_bits(plan: str, results: list[RankResult]) -> None:
    every, differ = [result.facts[plan] for result in results], 0
    for number, calls in enumerate(zip(*every, strict=True)):
        assert len({(*call["codecs"], *call["measured_ppm"]) for call in calls}) == 1, (plan, number)
        differ += len({tuple(call["own_ppm"]) for call in calls}) > 1
        assert not any(call["key"] for call in calls), "no payload met other bases than it was made for"
        ends: dict[str, list[int]] = {}
        for call in calls:
            for name, value in call["hashes"].items():
                ends.setdefault(name, []).append(value)
        assert ends, "no channel was used"
        assert min(map(len, ends.values())) >= 2, "every channel has two ends"
        assert [name for name, values in ends.items() if len(set(values)) > 1] == [], (plan, number)
        errors = [call["error"] for call in calls if call["error"] is not None]
        # Four matrices go into it, each with up to the 10 % that a layer may lose: 0.2 if they add up like noise.
        assert all(error < 0.2 for error in errors), (plan, number)
    assert differ > len(every[0]) / 2, "the control: what each rank measured itself would have led it elsewhere"
    branches = {call["branch"] for calls in every for call in calls}
    assert branches == {"cond", "uncond"}
