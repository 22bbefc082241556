"""Jobs that end early, in every state: cancelled, released, vanished, drained."""

from __future__ import annotations

import pytest
from tutti.backend.broker.actions import Drained, ForgetClient
from tutti.backend.broker.events import Undelivered
from tutti.backend.wire.messages import Abort, Accepted, Cancel, Ended, Evaluated, Result

from tests.unit.broker.rig import (
    CONTEXT_DIGEST,
    A,
    B,
    C,
    Rig,
    codes,
    job,
    persisted,
    prepares,
    ready_rig,
    sent_to_ranks,
    told,
)

SAMPLE_STATES = ["queued", "preparing", "running"]
TRAJECTORY_STATES = [*SAMPLE_STATES, "waiting"]


def with_sample(state: str, *, keep: bool = True) -> Rig:
    """Job 1 of client A is a Sample in ``state``."""
    rig = ready_rig()
    if state == "queued":
        rig.submit(B, 9)
    rig.submit(A, 1, keep=keep)
    if state == "running":
        rig.prepared()
    return rig


def with_trajectory(state: str) -> Rig:
    """Job 1 of client A is an Evaluate trajectory in ``state``."""
    rig = ready_rig()
    rig.upload(A, 1)
    if state == "queued":
        rig.submit(B, 9)
    rig.evaluate(A, 1, 0)
    if state in ("running", "waiting"):
        rig.prepared()
    if state == "waiting":
        rig.evaluated(1, 0)
        rig.done()
    return rig


def is_clean(rig: Rig) -> bool:
    """Nothing of client A is left."""
    owner = rig.broker.core.connections.owner(A)
    assert owner is not None
    usage = rig.broker.core.accounts.of(owner)
    return (usage.jobs, usage.bytes) == (0, 0) and rig.broker.core.jobs.get(job(1)) is None


@pytest.mark.parametrize("state", SAMPLE_STATES)
def test_a_cancelled_sample_ends_and_the_client_is_told(state: str) -> None:
    rig = with_sample(state)
    actions = rig.cancel(A, 1)
    if state == "running":
        assert sent_to_ranks(actions) == [(1, Cancel(job_id=job(1)))]
        assert codes(actions, A) == []
        rig.failed(1, "cancelled")
        actions = rig.done()
    if state == "preparing":
        assert sent_to_ranks(actions) == [(2, Abort(sequence=1))]
        rig.prepared()
    assert codes(actions, A) == ["cancelled"]
    assert (job(1), "cancelled") in persisted(actions)
    assert is_clean(rig)


@pytest.mark.parametrize("state", TRAJECTORY_STATES)
def test_a_cancelled_trajectory_ends_and_the_client_is_told(state: str) -> None:
    rig = with_trajectory(state)
    actions = rig.cancel(A, 1)
    if state == "running":
        rig.failed(1, "cancelled")
        actions = rig.done()
    if state == "preparing":
        rig.prepared()
    assert codes(actions, A) == ["cancelled"]
    assert is_clean(rig)


@pytest.mark.parametrize("state", TRAJECTORY_STATES)
def test_a_released_trajectory_ends_in_any_state(state: str) -> None:
    rig = with_trajectory(state)
    actions = rig.release(A, 1)
    if state == "running":
        rig.failed(1, "cancelled")
        actions = rig.done()
    if state == "preparing":
        rig.prepared()
    assert told(actions, A)[-1] == Ended(job_id=job(1))
    assert codes(actions, A) == []
    assert is_clean(rig)


def test_releasing_what_is_not_there_is_what_was_wanted() -> None:
    assert told(ready_rig().release(A, 5), A) == [Ended(job_id=job(5))]


def test_cancelling_twice_tells_rank_0_once() -> None:
    rig = with_sample("running")
    rig.cancel(A, 1)
    assert sent_to_ranks(rig.cancel(A, 1)) == []


def test_a_result_that_is_faster_than_the_cancel_counts() -> None:
    rig = with_sample("running")
    rig.cancel(A, 1)
    assert [type(message) for message in told(rig.result(1), A)] == [Result]
    assert codes(rig.done(), A) == []
    assert rig.broker.core.finished == 1


def test_a_turn_that_is_faster_than_the_cancel_ends_the_trajectory_all_the_same() -> None:
    rig = with_trajectory("running")
    rig.cancel(A, 1)
    assert told(rig.evaluated(1, 0), A) == []
    assert codes(rig.done(), A) == ["cancelled"]


@pytest.mark.parametrize("number", [1, 2])
def test_cancelling_what_ended_or_never_was_is_unknown(number: int) -> None:
    rig = with_sample("running")
    rig.result(1)
    rig.done()
    assert codes(rig.cancel(A, number), A) == ["unknown_job"]


def test_another_client_can_neither_cancel_nor_release() -> None:
    rig = with_trajectory("waiting")
    assert codes(rig.cancel(B, 1), B) == ["unknown_job"]
    rig.release(B, 1)
    assert rig.broker.core.jobs.get(job(1)) is not None


def test_the_group_is_free_for_the_next_job_right_after_a_cancel_before_go() -> None:
    rig = with_sample("preparing")
    rig.submit(B, 2)
    actions = rig.cancel(A, 1)
    assert [type(message) for _, message in sent_to_ranks(actions)][:2] == [Abort, type(prepares(actions)[0][0])]
    assert rig.turn_of == job(2)


# --- the same id again while it is being cancelled ----------------------------------------------------------------------------


def test_a_sample_submitted_again_while_it_is_being_cancelled_is_a_new_attempt_afterwards() -> None:
    rig = with_sample("running")
    rig.cancel(A, 1)
    assert told(rig.submit(A, 1), A) == []
    rig.failed(1, "cancelled")
    actions = rig.done()
    assert codes(actions, A) == ["cancelled"]
    assert told(actions, A)[-1] == Accepted(job_id=job(1), state="queued", ahead=0)
    assert rig.turn_of == job(1)
    rig.run(1)
    assert rig.broker.core.finished == 1


def test_a_cancel_also_takes_back_what_was_submitted_again() -> None:
    rig = with_sample("running")
    rig.cancel(A, 1)
    rig.submit(A, 1)
    rig.cancel(A, 1)
    rig.failed(1, "cancelled")
    assert codes(rig.done(), A) == ["cancelled"]
    assert rig.turn_of is None
    assert is_clean(rig)


@pytest.mark.parametrize("state", ["queued", "preparing", "running", "waiting"])
def test_a_restarted_client_begins_its_open_trajectory_again_with_turn_0(state: str) -> None:
    rig = with_trajectory("waiting")
    rig.evaluate(A, 1, 1)
    if state == "running":
        rig.prepared()
    if state == "waiting":
        rig.run_turn(1, 1)
    if state == "queued":
        rig.run_turn(1, 1)
        rig.wait(0.6)
        rig.submit(B, 9)
        rig.evaluate(A, 1, 2)
    rig.hello(C, client=int.from_bytes(A, "big") + 1)
    rig.upload(C, 1)
    actions = rig.evaluate(C, 1, 0)
    if state == "running":
        rig.failed(1, "cancelled")
        actions = rig.done()
    if state == "queued":
        actions += rig.run(9)
    assert Accepted(job_id=job(1), state="queued", ahead=int(state == "queued")) in told(actions, C)
    assert rig.turn_of == job(1)
    assert [type(message) for message in told(rig.run_turn(1, 0), C)] == [Evaluated]


# --- turns of a trajectory ----------------------------------------------------------------------------------------------------


def test_a_repeated_turn_gets_the_kept_answer_and_does_not_run() -> None:
    rig = with_trajectory("waiting")
    rig.evaluate(A, 1, 1)
    rig.run_turn(1, 1)
    actions = rig.evaluate(A, 1, 1)
    assert [(type(m), getattr(m, "turn", None)) for m in told(actions, A)] == [(Evaluated, 1)]
    assert rig.turn_of is None


def test_a_repeated_turn_in_flight_is_answered_once_to_who_asked_last() -> None:
    rig = with_trajectory("waiting")
    rig.evaluate(A, 1, 1)
    rig.hello(C, client=int.from_bytes(A, "big") + 1)
    assert told(rig.evaluate(C, 1, 1), C) == []
    assert [type(message) for message in told(rig.run_turn(1, 1), C)] == [Evaluated]


def test_turn_0_repeated_while_it_is_the_last_one_gets_its_kept_answer() -> None:
    rig = with_trajectory("waiting")
    actions = rig.evaluate(A, 1, 0)
    assert told(actions, A)[0] == Accepted(job_id=job(1), state="waiting", ahead=0)
    assert isinstance(told(actions, A)[1], Evaluated)


@pytest.mark.parametrize("turn", [2, 7])
def test_a_gap_in_the_turns_is_refused_and_the_trajectory_stays_open(turn: int) -> None:
    rig = with_trajectory("waiting")
    assert codes(rig.evaluate(A, 1, turn), A) == ["bad_request"]
    assert codes(rig.evaluate(A, 1, 1), A) == []


def test_the_next_turn_before_the_answer_is_refused() -> None:
    rig = with_trajectory("running")
    assert codes(rig.evaluate(A, 1, 1), A) == ["bad_request"]


@pytest.mark.parametrize("ended", ["released", "never"])
def test_a_later_turn_of_what_is_not_open_is_unknown(ended: str) -> None:
    rig = ready_rig()
    if ended == "released":
        rig = with_trajectory("waiting")
        rig.release(A, 1)
    assert codes(rig.evaluate(A, 1, 1), A) == ["unknown_job"]


def test_an_evaluate_that_names_what_was_not_uploaded_is_refused() -> None:
    rig = ready_rig()
    assert codes(rig.evaluate(A, 1, 0), A) == ["bad_request"]


def test_a_turn_waits_for_the_check_of_its_upload_and_nobody_waits_behind_it() -> None:
    rig = ready_rig()
    rig.answer_digests = False
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    assert rig.turn_of is None
    rig.submit(A, 2)
    assert rig.turn_of == job(2)
    rig.give_digests()
    rig.run(2)
    assert rig.turn_of == job(1)


def test_a_turn_whose_upload_turns_out_wrong_fails() -> None:
    rig = ready_rig()
    rig.answer_digests = False
    from tests.unit.broker.rig import CONTEXT

    rig.upload(A, 1, {"context": CONTEXT["context"], "more": CONTEXT["context"]}, digest=CONTEXT_DIGEST)
    rig.evaluate(A, 1, 0)
    assert codes(rig.give_digests(), A) == ["bad_request"]
    assert is_clean(rig)


# --- clients that vanish ------------------------------------------------------------------------------------------------------


def test_a_silent_clients_trajectory_is_released_after_its_lease() -> None:
    rig = with_trajectory("waiting")
    rig.wait(14.0)
    assert rig.broker.core.jobs.get(job(1)) is not None
    actions = rig.wait(1.5)
    assert (job(1), "cancelled") in persisted(actions)
    assert ForgetClient(peer=A) in actions
    assert is_clean(rig)


def test_pings_keep_a_trajectory_open() -> None:
    rig = with_trajectory("waiting")
    for _ in range(20):
        rig.wait(2.0)
        rig.ping(A)
    assert rig.broker.core.jobs.get(job(1)) is not None


@pytest.mark.parametrize("state", SAMPLE_STATES)
def test_a_sample_runs_on_without_its_client_if_it_shall(state: str) -> None:
    rig = with_sample(state, keep=True)
    rig.wait(30.0)
    assert rig.broker.core.jobs.get(job(1)) is not None


@pytest.mark.parametrize("state", SAMPLE_STATES)
def test_a_sample_that_shall_not_run_on_is_cancelled(state: str) -> None:
    rig = with_sample(state, keep=False)
    actions = rig.wait(30.0)
    if state == "running":
        assert sent_to_ranks(actions) == [(1, Cancel(job_id=job(1)))]
        rig.failed(1, "cancelled")
        rig.done()
    if state == "preparing":
        rig.prepared()
    assert is_clean(rig)


# --- draining -----------------------------------------------------------------------------------------------------------------


def test_a_result_that_found_nobody_is_kept_like_those_of_absent_clients() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.run(1)
    kept = rig.broker.core.results
    assert (list(kept.delivered.kept), list(kept.undelivered.kept)) == ([job(1)], [])
    rig.give(Undelivered(job_id=job(1)))
    assert (list(kept.delivered.kept), list(kept.undelivered.kept)) == ([], [job(1)])
    rig.give(Undelivered(job_id=job(2)))
    assert [type(message) for message in told(rig.submit(A, 1), A)] == [Accepted, Result]


def test_draining_ends_what_has_not_begun_and_finishes_what_has() -> None:
    rig = ready_rig()
    rig.submit(A, 1)
    rig.submit(A, 2)
    rig.prepared()
    actions = rig.drain()
    assert codes(actions, A) == ["draining"], "the queued one"
    assert rig.broker.core.group_state() == "draining"
    assert codes(rig.submit(A, 3), A) == ["draining"]
    actions = rig.result(1)
    assert [type(message) for message in told(actions, A)] == [Result]
    assert actions[-1] == Drained()


def test_an_idle_daemon_is_drained_at_once_and_says_so_once() -> None:
    rig = ready_rig()
    assert rig.drain() == [Drained()]
    assert rig.drain() == []


def test_an_open_trajectory_may_go_on_while_draining_until_the_deadline() -> None:
    rig = with_trajectory("waiting")
    rig.drain()
    rig.evaluate(A, 1, 1)
    assert [type(message) for message in told(rig.run_turn(1, 1), A)] == [Evaluated]
    for _ in range(12):
        rig.wait(2.0)
        rig.ping(A)
    actions = rig.wait(2.0)
    assert codes(actions, A) == ["draining"]
    assert Drained() in actions


def test_a_running_job_is_cancelled_at_the_drain_deadline() -> None:
    rig = with_sample("running")
    rig.drain()
    rig.ping(A)
    actions = rig.wait(25.0)
    assert sent_to_ranks(actions) == [(1, Cancel(job_id=job(1)))]
    rig.failed(1, "cancelled")
    actions = rig.done()
    assert codes(actions, A) == ["draining"]
    assert Drained() in actions
