"""Ranks that hang without dying: the group is started again when one is silent for too long, and never because work takes its time."""

from __future__ import annotations

import pytest
from tutti.backend.broker.actions import Action, RestartGroup
from tutti.backend.broker.settings import BrokerSettings
from tutti.backend.wire.messages import Done, Ended, Evaluated, Failed, Prepared, Progress, Refused, Result

from tests.unit.broker.rig import A, B, Rig, codes, job, prepares, ready_rig, told

LEAVE_S, PREPARE_S = 120.0, 120.0


def restarts(actions: list[Action]) -> list[str]:
    return [action.cause for action in actions if isinstance(action, RestartGroup)]


def rig_at_work(**settings: object) -> Rig:
    """Job 1 of client A is a Sample that the ranks compute, job 2 waits. Nobody's lease matters here."""
    rig = ready_rig(lease_s=1e6, **settings)
    rig.submit(A, 1)
    rig.submit(A, 2)
    rig.prepared()
    return rig


def waits_exactly(rig: Rig, seconds: float) -> list[Action]:
    """The deadline is known beforehand, nothing happens before it, and this is what happens at it."""
    assert rig.broker.next_deadline_s() == pytest.approx(rig.now_s + seconds)
    assert restarts(rig.wait(seconds - 0.01)) == []
    return rig.wait(0.02)


# --- leaving --------------------------------------------------------------------------------------------------------------------


def test_a_rank_that_does_not_leave_a_cancelled_job_is_named_and_the_job_ends_as_cancelled() -> None:
    rig = rig_at_work()
    rig.cancel(A, 1)
    rig.done([0])
    actions = waits_exactly(rig, LEAVE_S)
    assert restarts(actions) == ["rank 1 did not leave the job within 120 s"]
    assert codes(actions, A) == [], "it is told when the ranks are gone"
    (failed,) = told(rig.group_lost(*restarts(actions)), A)
    assert isinstance(failed, Failed)
    assert failed.code == "cancelled"
    rig.group_up()
    assert rig.turn_of == job(2)


def test_every_rank_that_is_silent_is_named_and_the_restart_is_asked_for_once() -> None:
    rig = rig_at_work()
    rig.cancel(A, 1)
    assert restarts(waits_exactly(rig, LEAVE_S)) == ["ranks 0 and 1 did not leave the job within 120 s"]
    assert restarts(rig.wait(1.0)) == []
    assert rig.broker.next_deadline_s() is None
    rig.group_lost()
    rig.group_up()
    rig.prepared()
    rig.cancel(A, 2)
    assert len(restarts(waits_exactly(rig, LEAVE_S))) == 1, "the next incarnation is watched like the first"


def test_a_job_that_is_not_cancelled_may_take_as_long_as_it_takes() -> None:
    rig = rig_at_work()
    assert rig.broker.next_deadline_s() is None
    assert restarts(rig.wait(24 * 3600.0)) == []


def test_ranks_that_leave_in_time_are_left_alone() -> None:
    rig = rig_at_work()
    rig.cancel(A, 1)
    rig.wait(LEAVE_S - 1.0)
    rig.failed(1, "cancelled")
    assert codes(rig.done(), A) == ["cancelled"]
    rig.prepared()
    assert restarts(rig.wait(10 * LEAVE_S)) == []


def test_slow_steps_are_waited_for_twice_as_long_as_the_longest() -> None:
    """A cancelled job is left between two model calls: what one of them takes is no sign of a rank that hangs."""
    rig = rig_at_work()
    for step, seconds in enumerate((0.0, 50.0, 110.0, 80.0)):
        rig.wait(seconds)
        rig.rank(0, Progress(job_id=job(1), phase="sampling", step=step, steps=10))
    rig.cancel(A, 1)
    cause = "ranks 0 and 1 did not leave the job within 220 s"
    assert restarts(waits_exactly(rig, 220.0)) == [cause]


@pytest.mark.parametrize("answer", ["result", "failed"])
def test_a_rank_that_stays_behind_after_the_answer_does_not_block_the_group_for_ever(answer: str) -> None:
    rig = rig_at_work()
    actions = rig.result(1) if answer == "result" else rig.failed(1, "out_of_memory")
    assert bool(told(actions, A)) == (answer == "result")
    rig.done([0])
    actions = waits_exactly(rig, LEAVE_S)
    assert restarts(actions) == ["rank 1 did not leave the job within 120 s"]
    assert codes(rig.group_lost(*restarts(actions)), A) == ([] if answer == "result" else ["worker_died"])
    rig.group_up()
    assert rig.turn_of == job(2)


def test_a_trajectory_whose_rank_hangs_after_the_answer_goes_on_with_the_next_group() -> None:
    rig = ready_rig(lease_s=1e6)
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    rig.prepared()
    rig.evaluated(1, 0)
    rig.done([1])
    rig.evaluate(A, 1, 1)
    actions = waits_exactly(rig, LEAVE_S)
    assert restarts(actions) == ["rank 0 did not leave the job within 120 s"]
    assert codes(rig.group_lost(*restarts(actions)), A) == []
    rig.group_up()
    assert [type(message) for message in told(rig.run_turn(1, 1), A)] == [Evaluated]


def test_a_trajectory_released_in_a_turn_that_hangs_ends_as_released() -> None:
    rig = ready_rig(lease_s=1e6)
    rig.upload(A, 1)
    rig.evaluate(A, 1, 0)
    rig.prepared()
    rig.release(A, 1)
    actions = waits_exactly(rig, LEAVE_S)
    assert told(rig.group_lost(*restarts(actions)), A) == [Ended(job_id=job(1))]


def test_a_compilation_is_waited_for_as_long_as_collectives_wait() -> None:
    rig = rig_at_work()
    rig.rank(0, Progress(job_id=job(1), phase="compiling", step=1, steps=2))
    rig.cancel(A, 1)
    assert restarts(waits_exactly(rig, 600.0)) == ["ranks 0 and 1 did not leave the job within 600 s"]


# --- making ready ---------------------------------------------------------------------------------------------------------------


def test_a_rank_that_never_answers_a_prepare_is_named_and_its_job_is_tried_once_more() -> None:
    rig = ready_rig(lease_s=1e6)
    rig.submit(A, 1)
    rig.prepared([0])
    cause = "rank 1 gave no sign of life for 120 s while a job was made ready"
    assert restarts(waits_exactly(rig, PREPARE_S)) == [cause]
    assert codes(rig.group_lost(cause), A) == []
    assert [prepare.sequence for prepare, _ in prepares(rig.group_up())] == [1]
    assert restarts(waits_exactly(rig, PREPARE_S)) == [cause.replace("rank 1", "ranks 0 and 1")]
    (failed,) = told(rig.group_lost(cause), A)
    assert isinstance(failed, Failed)
    assert failed.code == "worker_died"
    assert cause in failed.message


@pytest.mark.parametrize("slow", [0, 1])
def test_loading_may_take_as_long_as_each_rank_reports_it(slow: int) -> None:
    rig = ready_rig(lease_s=1e6)
    rig.submit(A, 1)
    rig.prepared([1 - slow])
    for percent in range(50):
        assert restarts(rig.wait(PREPARE_S - 1.0)) == []
        loading = Progress(job_id=job(1), phase="loading", step=percent, steps=100)
        assert told(rig.rank(slow, loading), A) == ([loading] if slow == 0 else []), "rank 0 speaks for the job"
    cause = f"rank {slow} gave no sign of life for 120 s while a job was made ready"
    assert restarts(waits_exactly(rig, PREPARE_S)) == [cause], "the clock begins at the last report"


def test_a_rank_that_loads_is_no_excuse_for_one_that_is_silent() -> None:
    rig = ready_rig(lease_s=1e6)
    rig.submit(A, 1)
    rig.wait(PREPARE_S - 1.0)
    rig.rank(0, Progress(job_id=job(1), phase="loading", step=1, steps=100))
    cause = "rank 1 gave no sign of life for 120 s while a job was made ready"
    assert restarts(waits_exactly(rig, 1.0)) == [cause]


def test_the_other_ranks_answers_are_no_excuse_for_one_that_is_silent() -> None:
    """Cancels and new submissions keep rank 0 talking; rank 1 has said nothing all the while."""
    rig = ready_rig(lease_s=1e6)
    causes: list[str] = []
    for number in range(1, 13):
        rig.submit(A, number)
        rig.prepared([0])
        causes += restarts(rig.wait(10.0))
        rig.cancel(A, number)
    assert causes == ["rank 1 gave no sign of life for 120 s while a job was made ready"]


def test_an_aborted_load_that_hangs_is_noticed_although_nobody_waits() -> None:
    rig = ready_rig(lease_s=1e6)
    rig.submit(A, 1)
    rig.cancel(A, 1)
    assert rig.turn_of is None
    assert len(restarts(waits_exactly(rig, PREPARE_S))) == 1


@pytest.mark.parametrize("answer", [Prepared(sequence=1), Refused(sequence=1, code="bad_plan", message="no")])
def test_a_late_answer_to_an_aborted_prepare_is_an_answer(answer: Prepared | Refused) -> None:
    rig = ready_rig(lease_s=1e6)
    rig.submit(A, 1)
    rig.cancel(A, 1)
    rig.wait(PREPARE_S - 1.0)
    for rank in rig.ranks:
        rig.rank(rank, answer)
    assert rig.broker.next_deadline_s() is None
    assert restarts(rig.wait(2 * PREPARE_S)) == []


def test_a_rank_that_answers_an_earlier_prepare_has_as_long_again_for_the_next() -> None:
    rig = ready_rig(lease_s=1e6)
    rig.submit(A, 1)
    rig.submit(A, 2)
    rig.cancel(A, 1)
    assert rig.turn_of == job(2)
    rig.wait(PREPARE_S - 1.0)
    for rank in rig.ranks:
        rig.rank(rank, Prepared(sequence=1))
    assert len(restarts(waits_exactly(rig, PREPARE_S))) == 1


def test_a_number_that_was_never_given_answers_nothing_that_comes_later() -> None:
    rig = ready_rig(lease_s=1e6)
    for rank in rig.ranks:
        rig.rank(rank, Done(sequence=99, memory_bytes=0, resident=()))
    rig.submit(A, 1)
    assert len(restarts(waits_exactly(rig, PREPARE_S))) == 1


def test_the_next_client_is_served_after_a_restart_for_silence() -> None:
    rig = ready_rig(lease_s=1e6)
    rig.submit(A, 1)
    rig.submit(B, 2)
    rig.wait(PREPARE_S)
    rig.group_lost()
    rig.group_up()
    assert [type(message) for message in told(rig.run(2), B)] == [Result], "whose turn it would have been anyway"
    assert [type(message) for message in told(rig.run(1), A)] == [Result]


@pytest.mark.parametrize("name", ["prepare_s", "leave_s"])
def test_a_deadline_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be more than 0"):
        BrokerSettings(instance="1" * 32, software="test", world_size=2, **{name: 0.0})  # type: ignore[arg-type]
