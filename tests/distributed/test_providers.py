"""Ranks agree on an attention kernel, whatever each would choose alone: on real gloo ranks, with kernels made to differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ranks import RankResult, run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[RankResult]:
    folder: Path = tmp_path_factory.mktemp("providers") / "ranks"
    return run_ranks("tests.distributed.provider_ranks", 2, folder, {})


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("opposite times", "b"),  # rank 0's measurement counts
        ("missing on one rank", "a"),
        ("wrong on one rank", "a"),
        ("wrong on both in turn", "math"),
        ("none on one rank", "math"),
        ("fails as it is timed", "b"),
        ("all fail as they are timed", "math"),
        ("no room for the check on rank 0", "math"),
        ("no room for the check on rank 1", "math"),
        ("no room to take times", "a"),  # they are right: the first will do
        ("after all that", "a"),  # and no rank is a collective ahead
    ],
)
def test_all_ranks_choose_the_same_kernel(name: str, chosen: str, ranks: list[RankResult]) -> None:
    assert [result.facts[name] for result in ranks] == [chosen, chosen]
    assert [result.facts[f"{name}: bytes of a second look"] for result in ranks] == [0, 0]


def test_the_rank_that_found_a_fault_says_so(ranks: list[RankResult]) -> None:
    told = ["\n".join(result.facts["reports"]) for result in ranks]
    assert "wrong-lse is off" in told[1]
    shown = ["\n".join(result.facts["parts"]) for result in ranks]
    assert "wrong-lse is off for 1 shape: its log-sum-exp is off by" in shown[1]
    assert all("no kernel is right on every rank" in text for text in told)
    assert all("attention runs by the formula, slowly, for 1 shape: " in text for text in shown)


def test_what_failed_is_said_in_one_line(ranks: list[RankResult]) -> None:
    first, second = (result.facts["reports"] for result in ranks)
    assert any(
        "a is off for" in text and "OutOfMemoryError as it is timed: no room for a second workspace" in text
        for text in first
    )
    assert any("runs by the formula" in text and "no kernel could be timed" in text for text in second)
    for told in (first, second):
        assert any("no kernel could be checked for" in text for text in told)
        assert not any("\n" in text for text in told)
