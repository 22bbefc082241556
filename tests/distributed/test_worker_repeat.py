"""Turns that are not prepared again (ADR 11) on two real ranks: what they compute, a cancel in them, and failures before their first call."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tutti.backend.wire.messages import Evaluated, Failed
from tutti.backend.worker.failure import EXIT_FAILED_ALONE, EXIT_GROUP_BROKEN
from tutti.backend.worker.loop import AGREEMENT_S

from tests.support.checkpoints import write_tiny_flux
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.rank_leg import RankGroup, running
from tests.support.reference_flux import ReferenceFlux
from tests.support.trajectories import Loop, conditioning, x_of

ENTRY = "tests.distributed.rank_entry"
DEADLINE_S = 30.0
NAMED = conditioning(11)
SIDE_BY_SIDE, BOTH_ON_EVERY_RANK = "cfg=2", "ulysses=2"
"""Where the two calls of a turn are made."""
SIGMAS = (0.9, 0.5)
"""Of the two calls of a turn."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny_flux(path, depth=1, depth_single=1)
    return path


@pytest.fixture(scope="module")
def group() -> Iterator[RankGroup]:
    """One group for everything that it survives."""
    with running(2, module=ENTRY) as ranks:
        yield ranks


@pytest.fixture
def mortal() -> Iterator[RankGroup]:
    """A group that may die."""
    with running(2, module=ENTRY) as ranks:
        yield ranks


def two_calls(seed: int) -> list[tuple[torch.Tensor, float]]:
    return [(x_of(seed + index), sigma) for index, sigma in enumerate(SIGMAS)]


def ready_for_repeat(group: RankGroup, checkpoint: Path, plan: str = SIDE_BY_SIDE) -> Loop:
    """A trajectory whose last turn had two calls and no conditioning: all later ones are its like."""
    loop = Loop(group, checkpoint, plan=plan)
    for seed in range(2):
        turn = loop.evaluate([(x, sigma, NAMED) for x, sigma in two_calls(seed)])
        assert isinstance(turn.answer, Evaluated)
    return loop


@contextmanager
def armed(group: RankGroup, place: str, rank: int) -> Iterator[None]:
    """The rank (-1: every one) misbehaves at this place, until the end of the block."""
    temporary = group.folder / "arming"
    temporary.write_text(json.dumps({"place": place, "rank": rank}))
    temporary.replace(group.folder / "armed")  # a rank may be looking
    try:
        yield
    finally:
        (group.folder / "armed").unlink()


def calls_begun(group: RankGroup) -> list[int]:
    """By every rank, since it started."""
    diaries = [(group.folder / f"{rank}.diary").read_text() for rank in range(group.world_size)]
    return [sum('"event": "call"' in line for line in diary.splitlines()) for diary in diaries]


def assert_next_jobs_are_right(group: RankGroup, checkpoint: Path, loop: Loop) -> None:
    """The same processes go on: in the trajectory, in a repeat of it, and in another one."""
    network = ReferenceFlux(load_file(checkpoint))
    named = {name: tensor.double() for name, tensor in NAMED.items()}
    prepared = loop.evaluate([(x, sigma, NAMED) for x, sigma in two_calls(50)])
    repeated = loop.repeat(two_calls(50))
    other = Loop(group, checkpoint, plan=loop.on.plan).evaluate([(x, sigma, NAMED) for x, sigma in two_calls(50)])
    for index, (x, sigma) in enumerate(two_calls(50)):
        name = f"call.{index}.out"
        right = network.velocity(x, torch.full((1,), sigma).double(), **named)
        assert relative_error(prepared.tensors[name], right) <= FP32_TOLERANCE
        assert torch.equal(prepared.tensors[name], repeated.tensors[name])
        assert torch.equal(prepared.tensors[name], other.tensors[name])
    assert [process.poll() for process in group.processes] == [None, None]


@pytest.mark.parametrize("plan", [SIDE_BY_SIDE, BOTH_ON_EVERY_RANK])
def test_a_repeated_turn_computes_what_a_prepared_one_does(group: RankGroup, checkpoint: Path, plan: str) -> None:
    loop = ready_for_repeat(group, checkpoint, plan)
    for seed in range(2, 4):
        repeated = loop.repeat(two_calls(seed))
        prepared = Loop(group, checkpoint, plan=plan).evaluate([(x, sigma, NAMED) for x, sigma in two_calls(seed)])
        for name in ("call.0.out", "call.1.out"):
            assert torch.equal(repeated.tensors[name], prepared.tensors[name])
        assert not torch.equal(repeated.tensors["call.0.out"], repeated.tensors["call.1.out"])  # negative control
        # The other trajectory came between: this one is prepared again.
        loop.evaluate([(x, sigma, NAMED) for x, sigma in two_calls(seed)])


def test_a_cancel_in_the_first_call_of_a_repeated_turn_keeps_every_rank_out_of_the_second(
    group: RankGroup, checkpoint: Path
) -> None:
    """Rank 0 stays in the first call until the Cancel has reached it: nobody wins by being fast."""
    loop = ready_for_repeat(group, checkpoint, BOTH_ON_EVERY_RANK)
    before = calls_begun(group)
    with armed(group, "call", 0):
        turn = loop.begin_repeat(two_calls(2))
        deadline_s = time.monotonic() + DEADLINE_S
        while calls_begun(group)[0] == before[0]:
            assert time.monotonic() < deadline_s, group.logs()
            time.sleep(0.01)
    assert not group.socket.poll(100), "the call lasts"
    group.cancel(turn)
    group.wait_done(turn)
    assert isinstance(turn.answer, Failed)
    assert turn.answer.code == "cancelled"
    assert calls_begun(group) == [count + 1 for count in before]
    assert_next_jobs_are_right(group, checkpoint, loop)


@pytest.mark.parametrize("place", ["share", "network"])
def test_the_same_failure_before_the_first_call_of_a_repeated_turn_keeps_the_group(
    place: str, group: RankGroup, checkpoint: Path
) -> None:
    """The exchange for that call has begun on every rank, and none makes the call."""
    loop = ready_for_repeat(group, checkpoint)
    before = calls_begun(group)
    with armed(group, place, -1):
        turn = loop.repeat(two_calls(2))
    assert isinstance(turn.answer, Failed)
    assert turn.answer.code == "internal"
    assert set(turn.done) == {0, 1}
    assert calls_begun(group) == before
    assert_next_jobs_are_right(group, checkpoint, loop)


@pytest.mark.parametrize(("place", "rank"), [("share", 0), ("share", 1), ("network", 0), ("network", 1)])
def test_a_failure_of_one_rank_before_the_first_call_of_a_repeated_turn_ends_the_group_soon(
    place: str, rank: int, mortal: RankGroup, checkpoint: Path
) -> None:
    loop = ready_for_repeat(mortal, checkpoint)
    with armed(mortal, place, rank):
        turn = loop.begin_repeat(two_calls(2))
        deadline_s = time.monotonic() + AGREEMENT_S + 5
        statuses = [process.wait(max(0.0, deadline_s - time.monotonic())) for process in mortal.processes]
    assert EXIT_FAILED_ALONE in statuses, "the daemon learns the cause from the exit status"
    assert set(statuses) <= {EXIT_FAILED_ALONE, EXIT_GROUP_BROKEN}
    assert "this rank ends" in mortal.logs()
    while mortal.socket.poll(100):
        mortal.take(turn)
    assert turn.answer is None
    assert turn.done == {}
