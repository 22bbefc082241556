"""Failures on real ranks: before Go, and alike on all of them, they keep the group; on one rank only they end it, without a hang."""

from __future__ import annotations

import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from tutti.backend.wire.codec import encode
from tutti.backend.wire.messages import Failed, Ping, Prepare, Repeat, Result
from tutti.backend.worker.failure import EXIT_FAILED_ALONE, EXIT_GROUP_BROKEN, EXIT_OUT_OF_MEMORY
from tutti.backend.worker.loop import AGREEMENT_S
from tutti.backend.worker.tensors import to_wire

from tests.support.checkpoints import write_tiny_flux
from tests.support.rank_leg import RankGroup, Turn, running, sample_of, sample_tensors

ENTRY = "tests.distributed.rank_entry"
FAULT = Path("/anywhere/fault.safetensors")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny_flux(path, depth=1, depth_single=1)
    return path


@pytest.fixture(scope="module")
def group() -> Iterator[RankGroup]:
    """One group for every failure that it survives."""
    with running(2, module=ENTRY) as ranks:
        yield ranks


@pytest.fixture
def mortal() -> Iterator[RankGroup]:
    """A group that may die."""
    with running(2, module=ENTRY) as ranks:
        yield ranks


def fault(group: RankGroup, **options: Any) -> Turn:
    tensors = sample_tensors()
    return group.run(sample_of(tensors, family="fault", options=options), tensors, FAULT)


def assert_next_job_is_right(group: RankGroup, checkpoint: Path, pids: list[int]) -> None:
    """The same processes go on computing the same picture."""
    tensors = sample_tensors()
    first, second = (group.run(sample_of(tensors), tensors, checkpoint) for _ in range(2))
    assert isinstance(first.answer, Result)
    assert torch.equal(first.tensors["latent"], second.tensors["latent"])
    assert all(process.poll() is None for process in group.processes)
    assert group.pids == pids == [process.pid for process in group.processes]


def tensors_with(**changes: Tensor) -> dict[str, Tensor]:
    return sample_tensors() | {name.replace("__", "."): tensor for name, tensor in changes.items()}


REFUSALS: dict[str, tuple[str, Callable[[Path], tuple[dict[str, Tensor], dict[str, Any], Path]]]] = {
    "a plan for another group": ("bad_plan", lambda good: (sample_tensors(), {"plan": "ulysses=3"}, good)),
    "a plan of another language": ("bad_plan", lambda good: (sample_tensors(), {"plan": "u=2"}, good)),
    "text of another width": (
        "wrong_family",
        lambda good: (tensors_with(branch__0__context=torch.zeros(1, 6, 63)), {}, good),
    ),
    "another family than the client saw": ("wrong_family", lambda good: (sample_tensors(), {"family": "wan"}, good)),
    "an input that nobody knows": (
        "unsupported_input",
        lambda good: (tensors_with(branch__0__control=torch.zeros(1, 2)), {}, good),
    ),
    "two positive branches": ("bad_request", lambda good: (sample_tensors(tokens=(5, 5, 5)), {"cfg": 4.0}, good)),
    "a file that is not there": (
        "bad_checkpoint",
        lambda good: (sample_tensors(), {}, good.with_name("gone.safetensors")),
    ),
    "a file of something else": ("bad_checkpoint", lambda good: (sample_tensors(), {}, Path(__file__))),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_job_that_cannot_run_is_refused_by_every_rank_and_the_group_stays(
    name: str, group: RankGroup, checkpoint: Path
) -> None:
    code, make = REFUSALS[name]
    tensors, request, path = make(checkpoint)
    pids = group.pids
    sample = sample_of(tensors, **request)
    if name == "two positive branches":
        sample = replace(sample, branches=(sample.branches[0], *sample.branches[:2]))
    turn = group.run(sample, tensors, path)
    assert {rank: refused.code for rank, refused in turn.refused.items()} == {0: code, 1: code}
    assert str(path.parent) not in turn.refused[0].message
    assert_next_job_is_right(group, checkpoint, pids)


def test_an_aborted_job_leaves_no_trace(group: RankGroup, checkpoint: Path) -> None:
    tensors, pids = sample_tensors(), group.pids
    for _ in range(3):
        turn = group.prepare(sample_of(tensors), tensors, checkpoint)
        group.wait_prepared(turn)
        assert turn.prepared == {0, 1}
        group.abort(turn)
    assert_next_job_is_right(group, checkpoint, pids)


@pytest.mark.parametrize(("how", "code"), [("memory", "out_of_memory"), ("bug", "internal")])
@pytest.mark.parametrize("call", [0, 2], ids=["first call", "third call"])
def test_the_same_failure_on_every_rank_fails_the_job_and_keeps_the_group(
    how: str, code: str, call: int, group: RankGroup, checkpoint: Path
) -> None:
    pids = group.pids
    tensors = sample_tensors()
    sigmas = tensors["sigmas"][-1 - call - 1 :]  # so many steps that the last call is the one that fails
    failing = tensors | {"sigmas": sigmas}
    warm = group.run(sample_of(tensors, family="fault"), tensors, FAULT)
    assert isinstance(warm.answer, Result)
    turn = group.run(sample_of(failing, family="fault", options={"fail": how}), failing, FAULT)
    assert isinstance(turn.answer, Failed)
    assert (turn.answer.code, turn.answer.job_id) == (code, turn.job_id)
    assert "/secret" not in turn.answer.message
    assert set(turn.done) == {0, 1}
    assert_next_job_is_right(group, checkpoint, pids)


def test_sigmas_that_cannot_be_sampled_fail_the_job_on_every_rank_alike(group: RankGroup, checkpoint: Path) -> None:
    pids, tensors = group.pids, tensors_with(sigmas=torch.tensor([1.0, float("nan"), 0.0]))
    turn = group.run(sample_of(tensors), tensors, checkpoint)
    assert isinstance(turn.answer, Failed)
    assert turn.answer.code == "bad_request"
    assert_next_job_is_right(group, checkpoint, pids)


def test_memory_is_free_again_after_a_call_that_ran_out_of_it(group: RankGroup, checkpoint: Path) -> None:
    tensors = sample_tensors()
    group.run(sample_of(tensors), tensors, checkpoint)
    before = fault(group, fail="memory").done[1].memory_bytes
    for _ in range(5):
        after = fault(group, fail="memory").done[1].memory_bytes
    assert after - before < 16 * 2**20


@pytest.mark.parametrize(
    ("how", "rank", "meet"), [("memory", 0, False), ("memory", 1, True), ("bug", 0, True), ("exit", 0, True)]
)
def test_a_failure_of_one_rank_ends_the_group_soon_and_never_hangs(
    how: str, rank: int, meet: bool, mortal: RankGroup
) -> None:
    tensors = sample_tensors()
    turn = mortal.prepare(
        sample_of(tensors, family="fault", options={"fail": how, "fail_rank": rank, "fail_call": 1, "meet": meet}),
        tensors,
        FAULT,
    )
    mortal.wait_prepared(turn)
    mortal.go(turn)
    ended_with = {process.wait(AGREEMENT_S + 5) for process in mortal.processes}
    meaning = {"memory": EXIT_OUT_OF_MEMORY, "bug": EXIT_FAILED_ALONE, "exit": 3}
    assert meaning[how] in ended_with, "the daemon learns the cause from the exit status"
    assert ended_with <= {EXIT_GROUP_BROKEN, meaning[how]}
    assert "this rank ends" in mortal.logs()
    assert not isinstance(turn.answer, Result)


def arm(group: RankGroup, how: str) -> Path:
    """Every rank's next local attention fails; returns the file that says so."""
    told = group.folder / "armed"
    told.write_text(json.dumps({"place": "attention", "rank": -1, "fail": how}))
    return told


@pytest.mark.parametrize(
    ("ranks", "plan", "how", "status"),
    [
        (2, "ring=2", "memory", EXIT_OUT_OF_MEMORY),
        (2, "ring=2,schedule=tokenring", "bug", EXIT_FAILED_ALONE),
        (3, "ring=3,schedule=prefetch-2", "memory", EXIT_OUT_OF_MEMORY),
    ],
    ids=["one hop", "queries that travel", "a hop and a later one"],
)
def test_the_same_failure_on_every_rank_with_hops_under_way_ends_all_of_them(
    ranks: int, plan: str, how: str, status: int, checkpoint: Path
) -> None:
    """All agree, but the next job's hops would pair with those that are under way, and wait forever."""
    with running(ranks, module=ENTRY) as group:
        tensors = sample_tensors()
        arm(group, how)
        turn = group.prepare(sample_of(tensors), tensors, checkpoint, plan=plan)
        group.wait_prepared(turn)
        group.go(turn)
        # All in less than a rank waits for the agreement: none was left alone with its failure. (A slow machine's call takes a second.)
        ended_with = [process.wait(AGREEMENT_S) for process in group.processes]
        # A rank whose end the others saw before they had agreed took them along.
        assert status in ended_with
        assert set(ended_with) <= {status, EXIT_GROUP_BROKEN}
        assert "were under way" in group.logs()


@pytest.mark.parametrize("plan", ["ulysses=2", "ring=2,schedule=allgather"])
def test_the_same_failure_in_an_attention_without_hops_keeps_the_group(
    plan: str, group: RankGroup, checkpoint: Path
) -> None:
    pids, tensors, told = group.pids, sample_tensors(), arm(group, "memory")
    try:
        turn = group.run(sample_of(tensors), tensors, checkpoint, plan=plan)
    finally:
        told.unlink()
    assert isinstance(turn.answer, Failed)
    assert turn.answer.code == "out_of_memory"
    after = group.run(sample_of(tensors), tensors, checkpoint, plan="ring=2")
    assert isinstance(after.answer, Result)
    assert_next_job_is_right(group, checkpoint, pids)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(lambda sequence: Ping(nonce=1), id="what ranks are never sent"),
        pytest.param(lambda sequence: _prepare(sequence + 7), id="a Prepare out of turn"),
    ],
)
def test_a_broker_that_breaks_the_protocol_ends_the_rank(
    message: Callable[[int], Any], mortal: RankGroup, checkpoint: Path
) -> None:
    mortal.send(1, encode(message(0)))
    assert mortal.processes[1].wait(20) == EXIT_GROUP_BROKEN
    assert "remote_protocol" in mortal.logs() or "RemoteProtocolError" in mortal.logs()


def _prepare(sequence: int) -> Prepare:
    tensors = sample_tensors()
    specs = tuple(to_wire(tensor).spec(name) for name, tensor in tensors.items())
    return Prepare(
        sequence=sequence,
        path="x",
        fingerprint="1",
        plan="",
        specs=specs,
        forget=(),
        sample=sample_of(tensors, job_id=secrets.token_hex(16)),
    )


def test_a_broker_that_goes_away_ends_every_rank(mortal: RankGroup) -> None:
    mortal.socket.close()
    assert {process.wait(20) for process in mortal.processes} == {EXIT_GROUP_BROKEN}
    assert "the broker closed the connection" in mortal.logs()


def test_ranks_that_wait_for_work_stop_cleanly_when_told_to(mortal: RankGroup) -> None:
    for process in mortal.processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(20) for process in mortal.processes] == [0, 0]


def test_ranks_at_work_leave_the_job_together_when_told_to_stop(mortal: RankGroup) -> None:
    tensors = sample_tensors(sigmas=tuple(1 - step / 100 for step in range(101)))
    turn = mortal.prepare(sample_of(tensors, family="fault", options={"call_s": 0.05}), tensors, FAULT)
    mortal.wait_prepared(turn)
    mortal.go(turn)
    while not any(message.step > 2 for message in turn.progress):
        mortal.take(turn)
    for process in mortal.processes:
        process.send_signal(signal.SIGTERM)
    started_s = time.monotonic()
    mortal.wait_done(turn)
    assert time.monotonic() - started_s < 2
    assert isinstance(turn.answer, Failed)
    assert turn.answer.code == "draining"
    assert [process.wait(20) for process in mortal.processes] == [0, 0]


def test_a_repeat_of_nothing_ends_the_group_without_a_hang(mortal: RankGroup, checkpoint: Path) -> None:
    tensors = sample_tensors()
    mortal.run(sample_of(tensors), tensors, checkpoint)
    repeat = Repeat(sequence=2, turn=1)
    for rank in range(mortal.world_size):
        mortal.send(rank, encode(repeat))
    assert [process.wait(20) for process in mortal.processes] == [EXIT_GROUP_BROKEN] * 2
    assert "without an Evaluate that ran last" in mortal.logs()
