"""The table of job states is whole: every state is reached, every end is an end."""

from __future__ import annotations

import itertools

import pytest
from tutti.backend.wire.job_states import TRANSITIONS, JobState, may_follow
from tutti.backend.wire.messages import Accepted
from tutti.backend.wire.schema import SchemaError, write

ENDS = {JobState.DONE, JobState.FAILED, JobState.CANCELLED}
NEW_ATTEMPTS = {(JobState.FAILED, JobState.QUEUED), (JobState.CANCELLED, JobState.QUEUED)}


def reached_from(start: JobState, *, without: set[tuple[JobState, JobState]] = frozenset()) -> set[JobState]:  # type: ignore[assignment]
    """Every state that some path leads to."""
    seen, edge = {start}, [start]
    while edge:
        state = edge.pop()
        fresh = {after for after in TRANSITIONS[state] if (state, after) not in without} - seen
        seen |= fresh
        edge += fresh
    return seen


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(JobState)


def test_every_state_is_reached_from_queued() -> None:
    assert reached_from(JobState.QUEUED) == set(JobState)


def test_every_open_state_can_fail_and_be_cancelled() -> None:
    for state in set(JobState) - ENDS:
        assert may_follow(state, JobState.FAILED)
        assert may_follow(state, JobState.CANCELLED)


def test_every_open_state_can_end() -> None:
    for state in set(JobState) - ENDS:
        assert reached_from(state, without=NEW_ATTEMPTS) & ENDS


def test_an_end_is_followed_by_nothing_but_a_new_attempt() -> None:
    for state, after in itertools.product(ENDS, JobState):
        assert may_follow(state, after) is ((state, after) in NEW_ATTEMPTS)


def test_a_finished_job_stays_finished() -> None:
    assert reached_from(JobState.DONE) == {JobState.DONE}


def test_nothing_runs_that_was_not_prepared() -> None:
    assert {state for state in JobState if may_follow(state, JobState.RUNNING)} == {JobState.PREPARING}


def test_no_state_follows_itself() -> None:
    assert not [state for state in JobState if may_follow(state, state)]


@pytest.mark.parametrize("state", JobState)
def test_only_the_three_ends_are_terminal(state: JobState) -> None:
    assert state.is_terminal is (state in ENDS)


@pytest.mark.parametrize("state", JobState)
def test_accepted_can_name_every_state_that_a_submission_can_meet(state: JobState) -> None:
    """An id that failed or was cancelled is accepted anew, so Accepted never says so."""
    accepted = Accepted(job_id="0" * 32, state=state.value, ahead=0)  # type: ignore[arg-type]
    if state in {JobState.FAILED, JobState.CANCELLED}:
        with pytest.raises(SchemaError):
            write(accepted)
    else:
        assert write(accepted)["state"] == state.value
