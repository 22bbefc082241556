"""The broker as a state machine without I/O: :meth:`Broker.handle` takes an event and the time, and returns actions.

It touches no socket, clock, file or process; hashing, sending and the catalog are asked for by actions. The rules stand in
admission.py (what comes in), dispatch.py (what the group is given), endings.py (how things end early) and turns.py (whose turn it is).
"""

from __future__ import annotations

import logging

from ..errors import NotReady, QueueFull
from ..wire.job_states import JobState
from ..wire.messages import (
    Cancel,
    Describe,
    Evaluate,
    Hello,
    Message,
    Ping,
    Pong,
    RankHello,
    Release,
    Sample,
    StatusRequest,
    Store,
    Upload,
    Welcome,
)  # fmt: skip
from . import report
from .actions import Action, DescribeModel, Drained, RestartGroup, StorePiece
from .admission import Admission
from .clients import ClientKey
from .core import Core, why_cancelled
from .deadlines import Deadlines
from .digests import OfJob, OfSubmission, OfUpload
from .dispatch import Dispatch
from .endings import Endings
from .events import (
    ClientGarbled,
    ClientSent,
    DescribeAnswered,
    Digested,
    Drain,
    Event,
    GroupLost,
    GroupStarting,
    RankGarbled,
    RankSent,
    Stop,
    Tick,
    Undelivered,
)  # fmt: skip
from .settings import BrokerSettings

log = logging.getLogger(__name__)


class Broker:
    """Admission, queue, turns, dispatch and leases of one daemon with one worker group."""

    def __init__(self, settings: BrokerSettings, now_s: float) -> None:
        self.core = Core(settings)
        """For reading; only :meth:`handle` may change it, and lookups.py what it counts in the accounts."""
        self._endings = Endings(self.core)
        self._admission = Admission(self.core, self._endings)
        self._dispatch = Dispatch(self.core, self._endings)
        self._deadlines = Deadlines(self.core)
        self._started_s = now_s
        self._drain_until_s: float | None = None
        self._drained = False
        self._strangers: set[bytes] = set()

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take one event; returns what has to be done, in order."""
        match event:
            case ClientSent():
                self._client_sent(event, now_s)
            case ClientGarbled():
                self.core.refuse(event.peer, event.error)
            case Undelivered():
                self.core.undelivered(event.job_id)
            case DescribeAnswered():
                self.core.describes.give_back(event.peer, event.user)
            case RankSent():
                self._rank_sent(event, now_s)
            case RankGarbled():
                self._rank_garbled(event)
            case GroupStarting():
                self._dispatch.group_starting(event)
            case GroupLost():
                self._dispatch.group_lost(event)
            case Digested():
                self._digested(event, now_s)
            case Drain():
                self._drain(now_s)
            case Stop():
                self._stop()
            case Tick():
                self._endings.give_up_vanished(now_s)
        self._settle(now_s)
        return self.core.take_actions()

    def next_deadline_s(self) -> float | None:
        """When a Tick is due at the latest, beside the regular ones; None if nothing is awaited."""
        due = [self._drain_until_s, self._deadlines.next_s()]
        if len(self.core.queue) and self.core.turn is None and self.core.group.ready:
            due.append(self.core.queue.held_until_s())
        return min((at_s for at_s in due if at_s is not None), default=None)

    def _settle(self, now_s: float) -> None:
        """What follows from any event: submissions that waited, the next turn, the end of draining."""
        self._continue_draining(now_s)
        while self.core.again:
            waiting = self.core.again.popleft()
            self._client_sent(waiting, now_s, renew=False)
        self._dispatch.schedule(now_s)
        self._deadlines.look(now_s)
        if self.core.draining and not self._drained and not any(True for _ in self.core.jobs.open()):
            self._drained = True
            self.core.emit(Drained())

    # --- clients --------------------------------------------------------------------------------------------------------------

    def _client_sent(self, event: ClientSent, now_s: float, *, renew: bool = True) -> None:
        message = event.received.message
        if isinstance(message, Hello):
            self._welcome(event, message, now_s)
            return
        owner = self.core.connections.owner(event.peer)
        if renew:
            self.core.connections.seen(event.peer, now_s)
        if isinstance(message, Ping):
            self.core.tell(event.peer, Pong(nonce=message.nonce, state=self.core.group_state()))
        elif owner is None or owner[0] != event.user:
            again = NotReady(
                "Run it again: the connection to the daemon was lost, and this one has not said hello yet."
            )
            self.core.refuse(
                event.peer, again, request=getattr(message, "request", None), job_id=getattr(message, "job_id", None)
            )
        else:
            self._client_asked(event, message, owner, now_s)

    def _client_asked(self, event: ClientSent, message: Message, owner: ClientKey, now_s: float) -> None:
        match message:
            case Sample():
                self._admission.submit(event, message, owner, now_s)
            case Evaluate() if message.turn == 0:
                self._admission.submit(event, message, owner, now_s)
            case Evaluate():
                self._admission.next_turn(event, message, owner)
            case Upload():
                self._admission.upload(event, message, owner, now_s)
            case Release():
                self._endings.release_asked(event.peer, message, owner)
            case Cancel():
                self._endings.cancel_asked(event.peer, message, owner)
            case Describe():
                self._describe(event, message)
            case Store():
                self._store(event, message)
            case StatusRequest():
                self.core.tell(event.peer, report.status(self.core, message.request, now_s - self._started_s))
            case _:
                log.warning("a client sent a %s, which clients do not send", type(message).__name__)

    def _describe(self, event: ClientSent, message: Describe) -> None:
        try:
            self.core.describes.take(event.peer, event.user)
        except QueueFull as error:
            self.core.refuse(event.peer, error, request=message.request)
            return
        self.core.emit(DescribeModel(peer=event.peer, user=event.user, request=message.request, model=message.model))

    def _store(self, event: ClientSent, message: Store) -> None:
        try:
            self.core.describes.take(event.peer, event.user)
        except QueueFull as error:
            self.core.refuse(event.peer, error, request=message.request)
            return
        data = event.received.tensors.get("bytes")
        self.core.emit(StorePiece(peer=event.peer, user=event.user, message=message, data=data))

    def _welcome(self, event: ClientSent, message: Hello, now_s: float) -> None:
        owner = (event.user, message.client_id)
        self.core.connections.hello(event.peer, owner, message.software, now_s)
        settings = self.core.settings
        self.core.tell(
            event.peer,
            Welcome(
                instance=settings.instance, software=settings.software, state=self.core.group_state(),
                reason=self.core.group.reason, lease_s=settings.lease_s,
            ),
        )  # fmt: skip

    # --- ranks ----------------------------------------------------------------------------------------------------------------

    def _rank_sent(self, event: RankSent, now_s: float) -> None:
        message = event.received.message
        rank = self.core.group.rank_of(event.peer)
        if isinstance(message, RankHello):
            turned_away = self.core.group.hello(event.peer, message)
            if turned_away:
                log.warning("turned a rank away: %s", turned_away)
        elif rank is None:
            self._note_stranger(event.peer)
        else:
            self._dispatch.rank_said(event, rank, now_s)

    def _rank_garbled(self, event: RankGarbled) -> None:
        rank = self.core.group.rank_of(event.peer)
        if rank is None:
            self._note_stranger(event.peer)
        else:
            self.core.emit(RestartGroup(cause=f"rank {rank.rank} sent what is no message: {event.error}"))

    def _note_stranger(self, peer: bytes) -> None:
        if peer not in self._strangers and len(self._strangers) < 1024:
            self._strangers.add(peer)
            log.warning("dropped what came on the ranks' socket from somebody that has not said hello")

    # --- digests --------------------------------------------------------------------------------------------------------------

    def _digested(self, event: Digested, now_s: float) -> None:
        match self.core.digests.take(event.token):
            case OfJob(job_id=job_id, attempt=attempt):
                job = self.core.jobs.get(job_id)
                if job and job.attempt == attempt:
                    job.digest = event.digest
            case OfSubmission() as purpose:
                self._admission.compared(purpose, event.digest, now_s)
            case OfUpload() as purpose:
                self._admission.upload_checked(purpose, event.digest)
            case None:
                pass  # a submission that was cancelled meanwhile

    # --- draining -------------------------------------------------------------------------------------------------------------

    def _drain(self, now_s: float) -> None:
        """Jobs that have not begun are refused now; what has begun gets until the deadline."""
        if self.core.draining:
            return
        self.core.draining = True
        self._drain_until_s = now_s + self.core.settings.drain_s
        for job in list(self.core.jobs.open()):
            begun = job.state is not JobState.QUEUED or job.turn > 0
            if not begun:
                self._endings.cancel(job, "draining")

    def _continue_draining(self, now_s: float) -> None:
        if self._drain_until_s is None or now_s < self._drain_until_s:
            return
        self._drain_until_s = None
        for job in list(self.core.jobs.open()):
            self._endings.cancel(job, "draining")

    def _stop(self) -> None:
        """Nobody waits any longer for ranks that leave: whoever waits for a job is told, before the socket closes."""
        self.core.draining, self._drain_until_s = True, None
        for job in list(self.core.jobs.open()):
            self.core.end(job, JobState.CANCELLED, why_cancelled(job.cancelling or "draining"))
