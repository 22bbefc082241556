"""Parcels opened ahead on real gloo ranks: the same bits as in place, decoded during attentions, and a rank that goes is told to all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import RankResult, run_ranks

SHARES = [9, 8, 5, 6]
STEPS = 6
PLANS = ("ring=4", "ring=2,ulysses=2", "ring=4,schedule=bidirectional", "ring=4,schedule=prefetch-2")
FORMS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({}, PLANS),
    ({"order": 2, "delayed_scales": True}, PLANS[:2]),
    ({"int8_base": True}, PLANS[2:]),
]
"""How much a state keeps, and the plans that are tried with it."""

pytestmark = pytest.mark.timeout(300)


def run(folder: Path, what: str, ranks: int = 4, **arguments: Any) -> list[RankResult]:
    arguments |= {"what": what, "shares": SHARES[:ranks]}
    return run_ranks("tests.distributed.ahead_ranks", ranks, folder / "ranks", arguments, timeout_s=240)


@pytest.mark.parametrize(("form", "plans"), FORMS, ids=["plain", "order 2, delayed scales", "8-bit base"])
def test_attentions_and_bases_are_the_same_bits_ahead_and_in_place_on_every_rank_after_every_step(
    form: dict[str, Any], plans: tuple[str, ...], tmp_path: Path
) -> None:
    results = run(tmp_path, "compare", plans=plans, form=form, steps=STEPS)
    for plan in plans:
        for step in range(STEPS):
            ends: dict[str, set[int]] = {}
            for rank, result in enumerate(results):
                ahead, in_place = (result.facts[f"{plan}, {kind}"][step] for kind in ("ahead", "in place"))
                assert ahead == in_place, (plan, step, rank)
                assert (ahead["mismatches"], ahead["broken"], ahead["compressed"]) == (0, 0, True)
                assert ahead["received"] >= 2
                assert ahead["unopened"] == 0, "a base would be updated after the call, or never"
                for name, value in ahead["hashes"].items():
                    ends.setdefault(name, set()).add(value)
            assert ends
            assert all(len(values) == 1 for values in ends.values()), (plan, step)
        given = [step["given"] for step in results[0].facts[f"{plan}, ahead"]]
        assert len(set(given)) == STEPS, "the control: steps differ"


def test_a_chunk_is_decoded_during_the_attention_to_the_one_before(tmp_path: Path) -> None:
    """An attention that waits for that ends; the control, opened in place, would wait for ever."""
    results = run(tmp_path, "look beside", deadlines_s={"ahead": 60, "in place": 0.2})
    for result in results:
        ahead, in_place = result.facts["ahead"], result.facts["in place"]
        attentions = 2 * 2 * (len(SHARES) - 1)  # steps, layers, chunks with one behind them
        assert ahead == {"saw": [True] * attentions, "threads": ["another"]}
        assert in_place == {"saw": [False] * attentions, "threads": ["main"]}


def test_a_rank_that_goes_in_the_middle_of_a_call_is_told_to_whoever_opens_a_parcel(tmp_path: Path) -> None:
    others = run(tmp_path, "lose one", ranks=3)
    assert others.pop(1).facts["failure"] == "this rank fails in the middle of a call"
    for result in others:
        assert result.facts["failure"], "nothing came, and it was raised in the call"
        assert result.facts["open hops"] >= 1, "a job that goes on after that would meet what is left of them"
