"""Jobs, and the table that holds the open and the finished ones. A state changes through :meth:`Job.move` only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..errors import InternalError
from ..wire.codec import Frame
from ..wire.job_states import JobState, may_follow
from ..wire.messages import Evaluate, ModelRef, Phase, Sample
from ..wire.tensors import Tensors
from .actions import JobRecord
from .clients import ClientKey
from .events import ClientSent, ModelFile

CancelReason = Literal["client", "released", "vanished", "superseded", "draining"]
ENDED_REMEMBERED = 4096
"""How many failed and cancelled jobs keep their attempt count."""


@dataclass(slots=True, kw_only=True)
class Job:
    """One Sample, or one open Evaluate trajectory."""

    job_id: str
    owner: ClientKey
    peer: bytes
    """The connection that is told."""
    model: ModelFile
    request: Sample | Evaluate
    """The Sample, or the Evaluate of the current turn."""
    tensors: Tensors
    """Tensors of ``request``; dropped when it has been answered."""
    frames: Sequence[Frame]
    """``request`` as it came; dropped likewise."""
    payload_bytes: int
    """What ``frames`` counts in the quotas; 0 once they are dropped."""
    attempt: int
    state: JobState = JobState.QUEUED
    digest: str | None = None
    """Of the Sample, or of turn 0."""
    digest_token: int | None = None
    """Under which the digest was asked for; None if it was not yet."""
    requeued: bool = False
    """The group died once before Go; it will not be tried a third time."""
    cancelling: CancelReason | None = None
    """Rank 0 was told to leave."""
    successor: ClientSent | None = None
    """The same id, submitted again while this attempt is being cancelled."""
    phase: Phase = "queued"
    step: int = 0
    steps: int = 0
    answer: Sequence[Frame] | None = None
    """The Evaluated of the current turn, for a client that asks again."""
    known_to_ranks: bool = False
    """The ranks keep state for this trajectory."""

    @property
    def kind(self) -> Literal["sample", "evaluate"]:
        """Which of the two kinds of job this is."""
        return "sample" if isinstance(self.request, Sample) else "evaluate"

    @property
    def on(self) -> ModelRef:
        """The model it runs on."""
        return self.request.on

    @property
    def turn(self) -> int:
        """Number of the current turn of a trajectory; 0 for a Sample."""
        return self.request.turn if isinstance(self.request, Evaluate) else 0

    def move(self, after: JobState) -> None:
        """Change the state.

        Raises:
            InternalError: wire/job_states.py does not allow it.
        """
        if not may_follow(self.state, after):
            raise InternalError(f"a job went from {self.state.value} to {after.value}")
        self.state = after

    def drop_payload(self) -> int:
        """Let go of the request's bytes; returns what the quotas get back."""
        freed, self.payload_bytes = self.payload_bytes, 0
        self.tensors, self.frames = {}, ()
        return freed

    def record(self, reason: str = "") -> JobRecord:
        """What the ledger is given."""
        user, client_id = self.owner
        return JobRecord(
            job_id=self.job_id, user=user, client_id=client_id, node_id=self.request.node_id, kind=self.kind,
            model=self.on.model, state=self.state, attempt=self.attempt, reason=reason,
        )  # fmt: skip


@dataclass(slots=True)
class JobTable:
    """Every job that is open, or done with its result still kept."""

    _jobs: dict[str, Job] = field(default_factory=dict)
    _attempts: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        return self._jobs.get(job_id)

    def add(self, job: Job) -> None:
        """Take a new job in."""
        if job.job_id in self._jobs:
            raise InternalError("a job was added twice")
        self._jobs[job.job_id] = job
        self._attempts[job.job_id] = job.attempt
        self._attempts.move_to_end(job.job_id)
        while len(self._attempts) > ENDED_REMEMBERED + len(self._jobs):
            self._attempts.popitem(last=False)

    def remove(self, job_id: str) -> None:
        """Forget a job that ended; its attempt count is remembered."""
        del self._jobs[job_id]

    def next_attempt(self, job_id: str) -> int:
        """The number of the attempt that would begin now."""
        return self._attempts.get(job_id, 0) + 1

    def open(self) -> Iterator[Job]:
        """Jobs that have not ended. The table must not change while this is read."""
        return (job for job in self._jobs.values() if not job.state.is_terminal)
