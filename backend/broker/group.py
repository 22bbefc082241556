"""The worker group as the broker sees it: who has said hello, what they hold, and the turn that is in flight."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Literal

from ..errors import TuttiError
from ..wire.job_states import JobState
from ..wire.messages import (
    Call,
    Done,
    Evaluate,
    Message,
    ModelRef,
    Prepared,
    Progress,
    RankHello,
    Refused,
    Sample,
)  # fmt: skip
from ..wire.tensors import TensorSpec
from .jobs import Job

Condition = Literal["starting", "ready", "restarting", "failed"]


@dataclass(slots=True)
class Rank:
    """One rank that said hello."""

    rank: int
    peer: bytes
    pid: int
    device: str
    transport: str
    memory_bytes: int = 0
    compile: str = ""
    """What runs compiled on it; empty before its first job."""
    attention: str = ""
    """What attentions run on there, and what was switched off; empty before its first one."""
    compression: str = ""
    """What its last job's exchange was compressed to; empty where it was not."""
    resident: tuple[str, ...] = ()
    answered: int = 0
    """Number of the last turn that it answered the Prepare of, or left."""
    owes_since_s: float | None = None
    """Since when it owes the answer to a Prepare and gave no sign of life; None if it owes nothing."""


@dataclass(slots=True)
class Turn:
    """One Sample or Evaluate on its way through the three phases."""

    sequence: int
    job: Job
    """It may have ended already, or even begun anew, while ranks still leave this turn."""
    size_bytes: int
    """What was sent to rank 0."""
    running: bool = False
    """Go was sent."""
    prepared: dict[int, str | None] = field(default_factory=dict)
    """Rank -> checksum of the weights that the job's LoRAs changed."""
    done: set[int] = field(default_factory=set)
    answered: bool = False
    """Rank 0 has answered the Evaluate."""
    failure: TuttiError | None = None
    """What rank 0 reported; told to the client when every rank has left the job."""
    leaving_since_s: float | None = None
    """When :attr:`is_leaving` was first seen."""
    longest_step_s: float = 0.0
    """Between two reports of a Sample's progress."""
    _step_s: float | None = None

    @property
    def is_leaving(self) -> bool:
        """Rank 0 was told to leave the job, or has answered it: every rank will soon be done."""
        at_work = self.job.state is JobState.RUNNING and self.job.cancelling is None and self.failure is None
        return self.running and not at_work

    def note_step(self, now_s: float) -> None:
        """Rank 0 has reported a step."""
        if self._step_s is not None:
            self.longest_step_s = max(self.longest_step_s, now_s - self._step_s)
        self._step_s = now_s


@dataclass(frozen=True, slots=True)
class ReadyFor:
    """What every rank has checked about a turn of a trajectory. An equal turn needs no second check."""

    job_id: str
    on: ModelRef
    calls: tuple[Call, ...]
    specs: tuple[TensorSpec, ...]

    @classmethod
    def turn_of(cls, request: Sample | Evaluate, specs: tuple[TensorSpec, ...]) -> ReadyFor | None:
        """What the ranks check about this one; None for a Sample, which has only one turn."""
        if isinstance(request, Sample):
            return None
        return cls(request.job_id, request.on, request.calls, specs)


@dataclass(slots=True)
class Group:
    """One worker group."""

    world_size: int
    condition: Condition = "starting"
    reason: str = ""
    """Why it is not ready, for people."""
    group_id: int = 0
    incarnation: str = ""
    sequence: int = 0
    restarts: int = 0
    runs: ReadyFor | None = None
    """Of the turn that was given last."""
    ready_for: ReadyFor | None = None
    """The same, once it has been answered and every rank has left it: an equal turn may be sent as a Repeat."""
    given_up: bool = False
    """A rank was silent for too long: the restart has been asked for."""
    _token: str = ""
    _ranks: dict[int, Rank] = field(default_factory=dict)
    _by_peer: dict[bytes, Rank] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Every rank waits for work, or is at it."""
        return self.condition == "ready"

    @property
    def ranks(self) -> list[Rank]:
        """The ranks that said hello, in order."""
        return [self._ranks[rank] for rank in sorted(self._ranks)]

    @property
    def peers(self) -> tuple[bytes, ...]:
        """Their routing identities, rank 0 first."""
        return tuple(rank.peer for rank in self.ranks)

    def start(self, group_id: int, incarnation: str, token: str) -> None:
        """A new incarnation is coming up."""
        if self.incarnation:
            self.restarts += 1
        self.condition = "restarting" if self.incarnation else "starting"
        self.group_id, self.incarnation, self._token, self.sequence = group_id, incarnation, token, 0
        self._forget_ranks()

    def lose(self, cause: str, *, failed: bool) -> None:
        """The ranks are gone."""
        self.condition = "failed" if failed else "restarting"
        self.reason = cause
        self._token = ""
        self._forget_ranks()

    def hello(self, peer: bytes, message: RankHello) -> str | None:
        """A rank reports for duty. Returns why it is turned away, or None."""
        # compare_digest, and before anything else: a stranger learns nothing from how long it takes or what is said
        if not self._token or not hmac.compare_digest(message.token, self._token):
            return "it does not know the incarnation's token"
        if (message.group_id, message.incarnation) != (self.group_id, self.incarnation):
            return "it belongs to another incarnation"
        if message.world_size != self.world_size or message.rank >= self.world_size:
            return f"it is rank {message.rank} of {message.world_size}, the group has {self.world_size}"
        if message.rank in self._ranks or peer in self._by_peer:
            return f"rank {message.rank} is there already"
        rank = Rank(message.rank, peer, message.pid, message.device, message.transport)
        self._ranks[message.rank] = self._by_peer[peer] = rank
        if len(self._ranks) == self.world_size:
            self.condition, self.reason = "ready", ""
        return None

    def rank_of(self, peer: bytes) -> Rank | None:
        """The rank behind a routing identity; None for a stranger."""
        return self._by_peer.get(peer)

    @property
    def answered_by_all(self) -> int:
        """Number of the last Prepare that every rank has answered."""
        return min((rank.answered for rank in self._ranks.values()), default=0)

    def asked(self, now_s: float) -> None:
        """A Prepare was sent to every rank."""
        for rank in self._ranks.values():
            if rank.owes_since_s is None:
                rank.owes_since_s = now_s

    def heard(self, rank: Rank, message: Message, now_s: float) -> None:
        """A sign of life. Every rank reports its own loading: one whose disk is slower than rank 0's is no rank that hangs."""
        if isinstance(message, Prepared | Refused | Done):
            rank.answered = max(rank.answered, min(message.sequence, self.sequence))
            rank.owes_since_s = None if rank.answered == self.sequence else now_s
        elif isinstance(message, Progress) and rank.owes_since_s is not None:
            rank.owes_since_s = now_s

    def note(self, rank: Rank, done: Done) -> None:
        """What a rank said when it left a job."""
        rank.memory_bytes, rank.resident = done.memory_bytes, done.resident
        rank.compile, rank.attention, rank.compression = done.compile, done.attention, done.compression

    def _forget_ranks(self) -> None:
        self.runs = self.ready_for = None
        self.given_up = False
        self._ranks.clear()
        self._by_peer.clear()
