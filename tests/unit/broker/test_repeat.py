"""Repeat: an equal turn of a trajectory begins at once, any other one is prepared."""

from __future__ import annotations

from typing import Any

import pytest
from tutti.backend.broker.actions import Action, SendRanks
from tutti.backend.errors import LocalProtocolError
from tutti.backend.wire import codec
from tutti.backend.wire.messages import Cancel, Evaluated, Message, Repeat
from tutti.backend.wire.tensors import Tensors

from tests.unit.broker.rig import (
    LATENT,
    A,
    B,
    Rig,
    codes,
    evaluate,
    evaluate_tensors,
    f32,
    job,
    prepares,
    ready_rig,
    sent_to_ranks,
    told,
)


def repeats(actions: list[Action]) -> list[tuple[int, Repeat, set[str]]]:
    """(how many ranks, message, its tensors) of every Repeat."""
    return [
        (len(action.peers), action.message, set(codec.decode(action.frames).tensors))
        for action in actions
        if isinstance(action, SendRanks) and isinstance(action.message, Repeat)
    ]


def rig_with_two_turns() -> Rig:
    """A trajectory whose last turn carried no conditioning any more: the next one is its like."""
    rig = ready_rig()
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    rig.run_turn(1, 0)
    rig.evaluate(A, 1, 1)
    rig.run_turn(1, 1)
    return rig


def test_an_equal_turn_begins_at_once_and_its_tensors_go_to_rank_0_only() -> None:
    rig = rig_with_two_turns()
    actions = rig.evaluate(A, 1, 2, fill=1.0)
    assert repeats(actions) == [
        (1, Repeat(sequence=3, turn=2), {"call.0.x", "call.0.timestep"}),
        (1, Repeat(sequence=3, turn=2), set()),
    ]
    assert prepares(actions) == []
    assert [type(message) for message in told(rig.evaluated(1, 2), A)] == [Evaluated]
    rig.done()
    assert repeats(rig.evaluate(A, 1, 3)) != [], "and so on"


def test_the_turn_after_the_one_that_brought_the_conditioning_is_prepared() -> None:
    rig = ready_rig()
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    rig.run_turn(1, 0)
    actions = rig.evaluate(A, 1, 1)
    assert (len(prepares(actions)), repeats(actions)) == (1, [])


def test_a_turn_that_fits_into_no_repeat_fails_alone_and_spends_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, encode = rig_with_two_turns(), codec.encode
    before = rig.sequence

    def encode_no_repeat(message: Message, tensors: Tensors | None = None, **rest: Any) -> list[codec.Frame]:
        if isinstance(message, Repeat):
            raise LocalProtocolError("too large")
        return encode(message, tensors, **rest)

    monkeypatch.setattr(codec, "encode", encode_no_repeat)
    actions = rig.evaluate(A, 1, 2)
    assert codes(actions, A) == ["bad_request"]
    assert (rig.sequence, rig.turn_of, repeats(actions)) == (before, None, [])
    (prepare, _), *_ = prepares(rig.submit(B, 2))
    assert prepare.sequence == before + 1, "the ranks count the numbers"


@pytest.mark.parametrize("between", ["another job", "a restart", "other shapes", "something to forget"])
def test_a_turn_for_which_the_ranks_may_not_be_ready_is_prepared(between: str) -> None:
    rig, tensors = rig_with_two_turns(), evaluate_tensors()
    if between == "another job":
        rig.wait(1.0)
        rig.submit(B, 9)
        rig.run(9)
    elif between == "a restart":
        rig.group_lost()
        rig.group_up()
    elif between == "other shapes":
        tensors = {"call.0.x": f32(*LATENT[:-1], LATENT[-1] + 2), "call.0.timestep": f32(1)}
    else:
        rig.broker.core.forget[job(77)] = None
    actions = rig.client(A, evaluate(job(1), 2), tensors)
    assert (len(prepares(actions)), repeats(actions)) == (1, [])


def test_a_trajectory_that_begins_anew_after_a_failure_is_prepared() -> None:
    rig = rig_with_two_turns()
    rig.evaluate(A, 1, 2)
    rig.failed(1, "out_of_memory")
    rig.done()
    rig.upload(A, 1)
    actions = rig.evaluate(A, 1, 0)
    assert (len(prepares(actions)), repeats(actions)) == (1, [])


def test_a_cancel_of_a_turn_that_began_at_once_reaches_rank_0() -> None:
    rig = rig_with_two_turns()
    rig.evaluate(A, 1, 2)
    assert sent_to_ranks(rig.cancel(A, 1)) == [(1, Cancel(job_id=job(1)))]
    rig.failed(1, "cancelled")
    assert codes(rig.done(), A) == ["cancelled"]
