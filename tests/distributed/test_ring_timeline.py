"""What overlaps in a ring, by the record of four real ranks on emulated links: hops with attentions, and hops with one another."""

from __future__ import annotations

from typing import Any

import pytest
from tutti.backend.parallel.plan import Plan
from tutti.benchmarks.timeline import Span, Timeline

from tests.support.attention_cases import AttentionCase
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.ranks import RankResult, run_ranks

pytestmark = pytest.mark.timeout(180)

WORLD_SIZE = 4
CASE = AttentionCase(lengths={"image": 64}, heads=4, batch=1)
ATTEND_S = 0.1
OVERLAPPING = ("ring", "prefetch-2", "bidirectional", "tokenring")
SHORT = ("ring", "prefetch-2")
HIDDEN = 0.5
"""A hop and an attention that run at once share all of their time but what waking up costs; one after the other they share none of it."""


def loop(schedule: str, *, hop_s: float, serial: bool = False) -> dict[str, Any]:
    name = f"{'serial ' if serial else ''}{schedule}, hop {hop_s}"
    plan = f"ring={WORLD_SIZE},schedule={schedule}"
    return {"name": name, "plan": plan, "hop_s": hop_s, "attend_s": ATTEND_S, "serial": serial}


LOOPS = [
    *(loop(schedule, hop_s=ATTEND_S) for schedule in OVERLAPPING),
    *(loop(schedule, hop_s=ATTEND_S, serial=True) for schedule in OVERLAPPING),
    *(loop(schedule, hop_s=ATTEND_S / 4) for schedule in SHORT),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[RankResult]:
    arguments = {"case": CASE.to_json(), "loops": LOOPS}
    return run_ranks(
        "tests.distributed.timeline_ranks", WORLD_SIZE, tmp_path_factory.mktemp("timeline") / "ranks", arguments
    )


def timelines(ranks: list[RankResult], name: str) -> list[Timeline]:
    return [
        Timeline(
            transfers={i: Span(**span) for i, span in enumerate(result.facts[name]["transfers"])},
            attentions=[Span(**span) for span in result.facts[name]["attentions"]],
        )
        for result in ranks
    ]


def per_chunk(timeline: Timeline, schedule: str) -> Timeline:
    """One attention per chunk: a bidirectional ring has one per half of the heads, one right after the other."""
    if schedule != "bidirectional":
        return timeline
    spans = timeline.attentions
    pairs = [Span(first.start_s, second.end_s) for first, second in zip(spans[::2], spans[1::2], strict=True)]
    return Timeline(transfers=timeline.transfers, attentions=pairs)


def hidden(ranks: list[RankResult], schedule: str, *, serial: bool) -> list[float]:
    name = loop(schedule, hop_s=ATTEND_S, serial=serial)["name"]
    shares = [share for timeline in timelines(ranks, name) for share in per_chunk(timeline, schedule).hidden()]
    assert len(shares) == WORLD_SIZE * (WORLD_SIZE - 1)
    return shares


@pytest.mark.parametrize("schedule", OVERLAPPING)
def test_each_chunk_is_attended_to_while_the_next_hop_is_under_way(schedule: str, ranks: list[RankResult]) -> None:
    assert min(hidden(ranks, schedule, serial=False)) >= HIDDEN


@pytest.mark.parametrize("schedule", OVERLAPPING)
def test_a_prefetch_that_waits_at_once_is_found_out(schedule: str, ranks: list[RankResult]) -> None:
    """Negative control."""
    assert max(hidden(ranks, schedule, serial=True)) == 0


def two_under_way(timeline: Timeline) -> list[bool]:
    """For each hop but the first: whether it began before the attention to the chunk before its own one was over."""
    return [timeline.transfers[hop].start_s < timeline.attentions[hop - 1].end_s for hop in range(1, WORLD_SIZE - 1)]


def test_with_depth_two_a_chunk_goes_on_in_the_middle_of_an_attention(ranks: list[RankResult]) -> None:
    for timeline in timelines(ranks, loop("prefetch-2", hop_s=ATTEND_S / 4)["name"]):
        assert all(two_under_way(timeline))


def test_with_depth_one_it_waits_for_the_attention(ranks: list[RankResult]) -> None:
    """Negative control."""
    for timeline in timelines(ranks, loop("ring", hop_s=ATTEND_S / 4)["name"]):
        assert not any(two_under_way(timeline))


@pytest.mark.parametrize("entry", LOOPS, ids=lambda entry: entry["name"])
def test_slow_links_change_no_number(entry: dict[str, Any], ranks: list[RankResult]) -> None:
    plan = Plan.parse(entry["plan"])
    for rank, result in enumerate(ranks):
        assert relative_error(result.tensors[entry["name"]], CASE.expected(plan, rank)) <= FP32_TOLERANCE
