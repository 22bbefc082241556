"""Attention cases: alike on all ranks, and drawn like what schedules hand to a kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from tutti.backend.parallel import usp
from tutti.backend.parallel.codecs import codec_of
from tutti.backend.parallel.exchange import Exchange
from tutti.backend.parallel.partition import Partition, StreamSplit
from tutti.backend.parallel.plan import SCHEDULES, Plan
from tutti.backend.parallel.providers import Attended, CpuFlash
from tutti.backend.parallel.providers.case import bucket, case_of, draw
from tutti.backend.parallel.usp import CallContext, attend, running_call
from tutti.benchmarks.step.peers import FakePeers, fake_mesh

from tests.support.meshes import single_rank_mesh
from tests.support.providers import case

CPU = torch.device("cpu")
BATCH, HEADS, HEAD_DIM, SCALE = 3, 5, 8, 0.3
"""Of one rank."""
CHUNK, PADDED = 32, 5
"""Tokens of an ulysses group, which are a bucket, as are those of three groups; and padding, where there is some."""

Lie = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides."""


class EqualPeers(FakePeers):
    """Peers of equal share."""

    def all_gather(self, gathered: Tensor, own: Tensor, group: ProcessGroup) -> None:
        gathered.copy_(own.repeat(group.size(), *[1] * (own.dim() - 1)))


class Watching(CpuFlash):
    """Notes how the tensors of its calls lie."""

    def __init__(self) -> None:
        self.met: set[tuple[Lie, ...]] = set()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        self.met.add(lies((q, k, v)))
        return super().__call__(q, k, v, scale)


def lies(tensors: Iterable[Tensor]) -> tuple[Lie, ...]:
    return tuple((tuple(x.shape), x.stride()) for x in tensors)


def without_lengths(met: set[tuple[Lie, ...]]) -> set[tuple[tuple[int, ...], ...]]:
    """Strides of heads, tokens and numbers: those of the batch, and shapes, depend on how many keys are padding."""
    return {tuple(strides[1:] for _, strides in tensors) for tensors in met}


def met_and_drawn(plan: Plan, partition: Partition, monkeypatch: pytest.MonkeyPatch) -> list[set[tuple[Lie, ...]]]:
    """What rank 0 really hands to its kernel in one attention, and what is drawn for the case."""
    mesh, _ = fake_mesh(plan, CPU)
    mesh = replace(mesh, transport=EqualPeers())
    watching = Watching()
    monkeypatch.setattr(usp, "provider_for", lambda *arguments: watching)
    q, k, v = (torch.randn(BATCH, partition.held[0], HEADS * plan.ulysses, HEAD_DIM) for _ in range(3))
    with running_call(CallContext(partition, Exchange(mesh, codec_of(plan, CPU)))):
        attend(q, k, v, SCALE)
    asked = case_of(q, SCALE, partition, mesh)
    return [watching.met, {lies(draw(asked, CPU, call)) for call in asked.calls}]


def split(plan: Plan, padded: Iterable[int] = ()) -> Partition:
    """Equal chunks, of which some are padded."""
    held = CHUNK // plan.ulysses
    valid = tuple(held - PADDED if rank in padded else held for rank in range(plan.world_size))
    stream = StreamSplit(held=(held,) * plan.world_size, valid=valid)
    return Partition(ring=plan.ring, ulysses=plan.ulysses, streams={"image": stream})


PLANS = [
    *(Plan(ulysses=ulysses, codec=codec) for ulysses, codec in ((1, "raw"), (2, "raw"), (2, "int8"))),
    *(
        Plan(ring=3, ulysses=ulysses, schedule=schedule, codec=codec)
        for schedule, (ulysses, codec) in itertools.product(SCHEDULES, ((1, "raw"), (2, "raw"), (2, "int8")))
    ),
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_drawn_tensors_are_strided_like_those_that_the_schedule_hands_over(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    met, drawn = met_and_drawn(plan, split(plan), monkeypatch)
    assert met == drawn


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan.ring > 1], ids=str)
def test_that_holds_for_ranks_with_padding_and_without(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    last = plan.world_size - 1
    met_without, drawn = met_and_drawn(plan, split(plan, padded=[last]), monkeypatch)
    met_with, drawn_again = met_and_drawn(plan, split(plan, padded=range(plan.world_size)), monkeypatch)
    assert without_lengths(drawn) == without_lengths(drawn_again)
    assert without_lengths(met_without | met_with) == without_lengths(drawn)


def test_without_a_ring_padding_makes_keys_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(ulysses=2)
    met, drawn = met_and_drawn(plan, split(plan, padded=[1]), monkeypatch)
    assert without_lengths(met) == without_lengths(drawn)
    unpadded, _ = met_and_drawn(plan, split(plan), monkeypatch)
    assert without_lengths(unpadded) != without_lengths(met)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_head_goes_every_way(schedule: str) -> None:
    calls = replace(case(), schedule=schedule, heads=1).calls
    assert {(call.first_head, call.heads) for call in calls} == {(0, 1)}


def test_schedules_have_cases_of_their_own() -> None:
    mesh, _ = fake_mesh(Plan(ring=3), CPU)
    partition, q = split(Plan(ring=3)), torch.empty(BATCH, CHUNK, HEADS, HEAD_DIM)
    cases = {name: case_of(q, SCALE, partition, replace(mesh, plan=Plan(ring=3, schedule=name))) for name in SCHEDULES}
    assert len({asked.key for asked in cases.values()}) == len(SCHEDULES)
    assert [name for name, asked in cases.items() if not asked.needs_lse] == ["allgather"]
    assert {name: asked.keys for name, asked in cases.items()} == dict.fromkeys(SCHEDULES, CHUNK) | {
        "allgather": 3 * CHUNK
    }


@pytest.mark.parametrize(
    ("tokens", "rounded"), [(1, 16), (16, 16), (17, 24), (63, 64), (65, 96), (4608, 6144), (4096, 4096), (32760, 32768)]
)
def test_a_length_falls_into_a_bucket_at_most_half_as_long_again(tokens: int, rounded: int) -> None:
    assert bucket(tokens) == rounded
    assert tokens <= rounded <= max(16, 1.5 * tokens)


def test_a_case_is_the_same_on_ranks_that_hold_unequal_shares() -> None:
    partition = Partition(ring=3, ulysses=1, streams={"image": StreamSplit.explicit([50, 0, 7])})
    cases = {case_of(torch.empty(2, held, 4, 16), 0.25, partition, single_rank_mesh()).key for held in partition.held}
    assert len(cases) == 1
    assert "q64 k64" in cases.pop()


def test_drawing_changes_nothing_that_a_job_draws() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    draw(case(), CPU)
    assert torch.rand(3).equal(expected)
