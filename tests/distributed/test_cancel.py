"""Cancel on two real ranks: all of them leave before the same call, soon, and the next job is right. Fifty of fifty."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from tutti.backend.wire.messages import Failed, Result

from tests.support.checkpoints import write_tiny_flux
from tests.support.rank_leg import RankGroup, Turn, running, sample_of, sample_tensors

ENTRY = "tests.distributed.rank_entry"
REPEATS = 50
GRACE_S = 0.2
"""What leaving may take beyond the call that runs when the cancel arrives."""
STEPS = 4000
"""So many that no machine is through before the latest cancel."""
SIGMAS = tuple(1 - step / STEPS for step in range(STEPS + 1))
KINDS = (
    ({"tokens": (6,)}, {"sampler": "euler"}),
    ({"tokens": (6,)}, {"sampler": "heun"}),
    ({"tokens": (5, 9)}, {"sampler": "dpmpp_2m", "cfg": 4.0}),
    ({"tokens": (6,), "latent": True, "mask": True}, {"sampler": "euler", "previews": True, "plan": "ring=2"}),
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny_flux(path)
    return path


@pytest.fixture(scope="module")
def group() -> Iterator[RankGroup]:
    with running(2, module=ENTRY) as ranks:
        yield ranks


def calls_of(group: RankGroup, rank: int) -> list[tuple[float, float]]:
    """Start and end of every call of a rank so far, in seconds of the monotonic clock."""
    lines = (group.folder / f"{rank}.calls").read_text().splitlines()
    return [(float(start), float(end)) for start, end in (line.split() for line in lines)]


def inputs_of(kind: int) -> dict[str, Tensor]:
    return sample_tensors(height=16, width=16, sigmas=SIGMAS, **KINDS[kind][0])  # type: ignore[arg-type]


def cancelled(group: RankGroup, checkpoint: Path, kind: int, after_s: float) -> Turn:
    """Start a long Sample and cancel it ``after_s`` after Go."""
    tensors = inputs_of(kind)
    turn = group.prepare(sample_of(tensors, **KINDS[kind][1]), tensors, checkpoint)  # type: ignore[arg-type]
    group.wait_prepared(turn)
    group.go(turn)
    while (left_s := turn.went_at_s + after_s - time.monotonic()) > 0:
        if group.socket.poll(max(1, int(left_s * 1000))):
            group.take(turn)
    group.cancel(turn)
    return group.wait_done(turn)


def test_fifty_of_fifty_cancels_free_every_rank_within_one_call_and_200_ms(group: RankGroup, checkpoint: Path) -> None:
    short = replace_sigmas(inputs_of(0))
    expected = group.run(sample_of(short), short, checkpoint).tensors["latent"]
    pids, moments = group.pids, random.Random(0)
    late: list[str] = []
    for repeat in range(REPEATS):
        before = [len(calls_of(group, rank)) for rank in range(2)]
        turn = cancelled(group, checkpoint, repeat % len(KINDS), moments.uniform(0, 0.6))
        assert isinstance(turn.answer, Failed)
        assert turn.answer.code == "cancelled"
        calls = [calls_of(group, rank)[before[rank] :] for rank in range(2)]
        assert len(calls[0]) == len(calls[1])
        late += [f"{repeat}: {text}" for text in lateness(turn, calls)]
        after = group.run(sample_of(short), short, checkpoint)
        assert isinstance(after.answer, Result)
        assert torch.equal(after.tensors["latent"], expected)
    assert late == []
    assert [process.pid for process in group.processes] == pids


def replace_sigmas(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"sigmas": torch.tensor([1.0, 0.0])}


def lateness(turn: Turn, calls: list[list[tuple[float, float]]]) -> Iterator[str]:
    """What was wrong with the way the ranks left."""
    longest_s = max((end - start for of_rank in calls for start, end in of_rank), default=0.0)
    for rank, done_s in turn.done_at_s.items():
        begun_later = sum(start > turn.cancelled_at_s for start, _ in calls[rank])
        # One call may have passed the gate while the cancel was on its way: it is the one call of the promise.
        if begun_later > 1:
            yield f"rank {rank} began {begun_later} more calls"
        if done_s - turn.cancelled_at_s > longest_s + GRACE_S:
            yield f"rank {rank} was free after {done_s - turn.cancelled_at_s:.3f} s, a call takes {longest_s:.3f} s"


def test_a_cancel_before_go_stops_the_job_before_its_first_call(group: RankGroup, checkpoint: Path) -> None:
    tensors = inputs_of(0)
    before = len(calls_of(group, 0))
    turn = group.prepare(sample_of(tensors), tensors, checkpoint)
    group.wait_prepared(turn)
    group.cancel(turn)
    group.go(turn)
    group.wait_done(turn)
    assert isinstance(turn.answer, Failed)
    assert turn.answer.code == "cancelled"
    assert len(calls_of(group, 0)) == before


def test_a_cancel_that_comes_after_the_end_or_names_another_job_harms_nobody(
    group: RankGroup, checkpoint: Path
) -> None:
    tensors = replace_sigmas(inputs_of(0))
    first = group.run(sample_of(tensors), tensors, checkpoint)
    group.cancel(first)
    second = group.prepare(sample_of(tensors), tensors, checkpoint)
    group.wait_prepared(second)
    group.cancel(first)
    group.go(second)
    group.cancel(first)
    group.wait_done(second)
    assert isinstance(second.answer, Result)


def test_a_cancelled_job_may_be_sent_again(group: RankGroup, checkpoint: Path) -> None:
    tensors = inputs_of(0)
    turn = cancelled(group, checkpoint, 0, 0.1)
    again = replace(sample_of(replace_sigmas(tensors)), job_id=turn.job_id)
    assert isinstance(group.run(again, replace_sigmas(tensors), checkpoint).answer, Result)
