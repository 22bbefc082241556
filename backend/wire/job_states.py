"""The states of a job, and which may follow which. Everything that decides about transitions stands in this file."""

from __future__ import annotations

from enum import Enum
from typing import Final


class JobState(str, Enum):
    """Where a job is."""

    QUEUED = "queued"
    """Accepted; waits for a turn."""
    PREPARING = "preparing"
    """Every rank was told; the model is being loaded and the inputs are being checked."""
    RUNNING = "running"
    """The group computes it."""
    WAITING = "waiting"
    """An open Evaluate trajectory between two turns: its client is at work."""
    DONE = "done"
    """Finished; its result was, or can be, delivered."""
    FAILED = "failed"
    """Ended by an error."""
    CANCELLED = "cancelled"
    """Ended by its owner, or because its owner vanished."""

    @property
    def is_terminal(self) -> bool:
        """Nothing follows, except a new attempt under the same id after a failure or a cancel."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


_S = JobState
TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    _S.QUEUED: frozenset({_S.PREPARING, _S.FAILED, _S.CANCELLED}),
    # Back to QUEUED: the group died before Go, so nothing has been computed and the turn is simply given again.
    _S.PREPARING: frozenset({_S.RUNNING, _S.QUEUED, _S.FAILED, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.DONE, _S.WAITING, _S.FAILED, _S.CANCELLED}),
    _S.WAITING: frozenset({_S.QUEUED, _S.DONE, _S.FAILED, _S.CANCELLED}),
    _S.DONE: frozenset(),
    # An id that failed or was cancelled may be submitted again: a new attempt.
    _S.FAILED: frozenset({_S.QUEUED}),
    _S.CANCELLED: frozenset({_S.QUEUED}),
}
"""State -> the states that may follow it."""


def may_follow(before: JobState, after: JobState) -> bool:
    """Whether ``after`` is a legal successor of ``before``."""
    return after in TRANSITIONS[before]
