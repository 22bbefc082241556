"""The thin loop around the state machine: sockets in, events through, actions out. One thread; nothing here decides anything."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import zmq

from ..errors import AuthFailed, InternalError, QueueFull, RemoteProtocolError, RequestRefused, TuttiError
from ..wire import codec
from ..wire.digest import content_digest, job_digest
from ..wire.limits import TEXT_LENGTH
from ..wire.messages import Described, Evaluated, Failed, Pong, RankHello, Result, Stored
from .actions import (
    Action,
    DescribeModel,
    Digest,
    Drained,
    EndPreviews,
    ForgetClient,
    ForwardClient,
    ForwardPreview,
    Persist,
    RestartGroup,
    SendClient,
    SendRanks,
    StorePiece,
)  # fmt: skip
from .auth import Gate, ZapHandler
from .background import Background
from .catalog import Catalog
from .events import (
    ClientGarbled,
    ClientSent,
    DescribeAnswered,
    Digested,
    Drain,
    Event,
    GroupLost,
    GroupStarting,
    ModelFile,
    RankGarbled,
    RankSent,
    Stop,
    Tick,
    Undelivered,
)  # fmt: skip
from .ledger import Ledger
from .lookups import LookUp, Lookups, Refusal, Step
from .previews import PreviewSlots
from .sockets import OUTBOX_RETRY_S, ClientSocket, RankSocket
from .state import Broker
from .store import FileStore

log = logging.getLogger(__name__)

TICK_S = 1.0
_REVOKED = Failed(
    code=AuthFailed.code,
    message="Get a new connection file from the daemon's owner and run `tutti connect FILE`: this key was revoked.",
)
_PONGS = "pongs"
"""A newer Pong replaces the older one that waits. No job's id."""
DRAIN_GRACE_S = 3.0
"""After the drain deadline the ranks get so long to leave a cancelled job before they are stopped in it."""


class GroupRunner(Protocol):
    """Whoever starts and watches the ranks. Everything is called from the main thread."""

    def start(self, now_s: float) -> None:
        """Start the first incarnation."""

    def fds(self) -> Sequence[int]:
        """File descriptors that become readable when there is something to :meth:`step` for."""

    def step(self, now_s: float) -> list[GroupStarting | GroupLost]:
        """See what happened, and start again what is due."""

    def next_step_s(self) -> float | None:
        """When :meth:`step` wants to be called without anything readable."""

    def note_ready(self, now_s: float) -> None:
        """Every rank has said hello."""

    def note_work(self) -> None:
        """The ranks have completed a job."""

    def restart(self, cause: str, now_s: float) -> list[GroupStarting | GroupLost]:
        """Kill the ranks and begin anew."""

    def stop(self) -> None:
        """Kill the ranks and wait until they are gone."""


class Server:
    """A daemon's main loop."""

    def __init__(
        self, *, broker: Broker, clients: ClientSocket, ranks: RankSocket, zap: ZapHandler, gate: Gate, catalog: Catalog, store: FileStore,
        ledger: Ledger, group: GroupRunner, on_ready: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._broker = broker
        self._clients = clients
        self._ranks = ranks
        self._zap = zap
        self._gate = gate
        self._catalog = catalog
        self._store = store
        self._ledger = ledger
        self._group = group
        self._on_ready = on_ready
        self._hashing = Background("tutti-digests")
        self._looking_up = Background("tutti-catalog")
        self._describing = Background(
            "tutti-listings"
        )  # one listing may walk a whole drive: no submission waits behind it
        self._lookups = Lookups(broker.core.accounts, broker.core.connections)
        self._previews = PreviewSlots(clients.send_tracked)
        self._wake_fd, self._signal_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._signal_fd, False)
        self._drain_asked = False
        self._stop_asked = False
        self._drain_until_s: float | None = None
        self._over = False
        self._was_ready = False
        self.failure: str | None = None
        """Why the group never came up."""

    # --- from outside (signal handlers) ---------------------------------------------------------------------------------------

    def ask_drain(self) -> None:
        """Finish what has begun, then stop; asked again: stop now. Safe in a signal handler."""
        self._stop_asked = self._drain_asked
        self._drain_asked = True
        os.write(self._signal_fd, b"\0")

    # --- the loop -------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until drained or told to stop."""
        poller = zmq.Poller()
        for readable in (
            self._zap.socket,
            self._clients.socket,
            self._ranks.socket,
            self._hashing.fd,
            self._looking_up.fd,
            self._describing.fd,
            self._wake_fd,
        ):
            poller.register(readable, zmq.POLLIN)
        group_fds: set[int] = set()
        self._group.start(time.monotonic())
        self._group_events(self._group.step(time.monotonic()))
        last_tick_s = 0.0
        while not self._over:
            group_fds = self._register(poller, group_fds)
            ready = dict(poller.poll(self._timeout_ms()))
            self._read(ready)
            now_s = time.monotonic()
            if not group_fds.isdisjoint(ready) or _is_due(self._group.next_step_s(), now_s):
                self._group_events(self._group.step(now_s))
            self._follow_drain(now_s)
            if now_s - last_tick_s >= TICK_S or _is_due(self._broker.next_deadline_s(), now_s):
                last_tick_s = now_s
                self._take(Tick())
                self._follow_later(self._lookups.overdue(now_s))
                self._group_events(self._group.step(now_s))
            self._previews.flush(now_s)
            if self._clients.has_waiting:
                self._note_lost(self._clients.flush())
        self._take(Stop())
        self._follow_later(self._lookups.drain(time.monotonic()))

    def close(self) -> None:
        """Stop the group, then let go of everything. Safe after a run that failed."""
        self._group.stop()
        self._clients.flush()
        self._hashing.close()
        self._looking_up.close()
        self._describing.close()
        self._ledger.close()
        self._ranks.close()
        self._clients.close()
        self._zap.close()
        os.close(self._wake_fd)
        os.close(self._signal_fd)

    def _register(self, poller: zmq.Poller, before: set[int]) -> set[int]:
        now = set(self._group.fds())
        for fd in before - now:
            poller.unregister(fd)
        for fd in now - before:
            poller.register(fd, zmq.POLLIN)
        return now

    def _timeout_ms(self) -> int:
        now_s = time.monotonic()
        due = [
            now_s + TICK_S,
            self._broker.next_deadline_s(),
            self._previews.next_due_s(now_s),
            self._group.next_step_s(),
        ]
        if self._clients.has_waiting:
            due.append(now_s + OUTBOX_RETRY_S)
        soonest_s = min(at_s for at_s in due if at_s is not None)
        return max(0, int((soonest_s - now_s) * 1000) + 1)

    def _read(self, ready: dict[object, int]) -> None:
        """Ranks first: what they say frees the group for what clients ask for."""
        if self._ranks.socket in ready:
            for peer, frames in self._ranks.receive():
                self._from_rank(peer, frames)
        if self._zap.socket in ready:
            self._zap.answer()
        if self._clients.socket in ready:
            for peer, user, frames in self._clients.receive():
                self._from_client(peer, user, frames)
        for background in (self._hashing, self._looking_up, self._describing):
            if background.fd in ready:
                background.collect()
        if self._wake_fd in ready:
            os.read(self._wake_fd, 4096)

    def _from_client(self, peer: bytes, user: str | None, frames: list[zmq.Frame]) -> None:
        if user is None or not self._gate.admits(user):
            self._send(peer, codec.encode(_REVOKED))  # its key was revoked while it was connected
            return
        arrived: ClientSent | ClientGarbled
        try:
            arrived = ClientSent(peer=peer, user=user, received=codec.decode(frames), frames=frames[1:])
        except RemoteProtocolError as error:
            log.info("a client sent what is no message: %s", error)
            arrived = ClientGarbled(peer=peer, error=error)
        self._follow(self._lookups.arrived(arrived, time.monotonic()))

    def _follow(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case LookUp():
                    self._looking_up.ask(functools.partial(self._look_up, step))
                case Refusal():
                    self._send(step.peer, codec.encode(step.message))
                case _:
                    self._take(step)

    def _follow_later(self, steps: Sequence[Step]) -> None:
        """The same for messages that were kept: a key may have been revoked meanwhile."""
        for step in steps:
            if isinstance(step, ClientSent) and not self._gate.admits(step.user):
                self._send(step.peer, codec.encode(_REVOKED))
            else:
                self._follow([step])

    def _look_up(self, lookup: LookUp) -> Callable[[], None]:
        """On the helper thread."""
        answer: ModelFile | TuttiError
        try:
            answer = self._catalog.resolve_all(*lookup.wanted)
        except Exception as problem:
            answer = _told(problem, "its list of models could not be read")
        return lambda: self._follow_later(self._lookups.found(lookup, answer, time.monotonic()))

    def _from_rank(self, peer: bytes, frames: list[zmq.Frame]) -> None:
        try:
            received = codec.decode(frames)
        except RemoteProtocolError as error:
            self._take(RankGarbled(peer=peer, error=error))
            return
        was_ready = self._broker.core.group.ready
        self._take(RankSent(peer=peer, received=received, frames=frames))
        if isinstance(received.message, Result | Evaluated):
            self._group.note_work()
        if isinstance(received.message, RankHello) and self._broker.core.group.ready and not was_ready:
            self._was_ready = True
            self._group.note_ready(time.monotonic())
            self._on_ready()

    def _group_events(self, events: Sequence[GroupStarting | GroupLost]) -> None:
        for event in events:
            self._take(event)
            if isinstance(event, GroupLost) and event.failed and not self._was_ready:
                self.failure, self._over = event.cause, True  # its jobs have just been told

    def _follow_drain(self, now_s: float) -> None:
        if self._stop_asked:
            self._over = True
        elif self._drain_asked and self._drain_until_s is None:
            self._drain_until_s = now_s + self._broker.core.settings.drain_s + DRAIN_GRACE_S
            self._take(Drain())
            self._follow_later(self._lookups.drain(now_s))
        elif self._drain_until_s is not None and now_s > self._drain_until_s:
            log.warning("stopped with a job still running")
            self._over = True

    # --- actions --------------------------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        for action in self._broker.handle(event, time.monotonic()):
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case SendRanks():
                for peer in action.peers:
                    self._ranks.send(peer, action.frames)
            case ForwardClient():
                answers, replaces = (None, action.job_id) if action.droppable else (action.job_id, None)
                self._send(action.peer, action.frames, answers=answers, replaces=replaces)
            case SendClient():
                # A client that pings and computes something else for an hour has missed nothing but Pongs.
                replaces = _PONGS if isinstance(action.message, Pong) else None
                self._send(action.peer, codec.encode(action.message), replaces=replaces)
            case Persist():
                self._ledger.persist(action.record)
            case ForwardPreview():
                self._previews.offer(action.job_id, action.peer, action.frames, time.monotonic())
            case EndPreviews():
                self._previews.end(action.job_id)
            case ForgetClient():
                self._previews.forget(action.peer)
                self._note_lost(self._clients.forget(action.peer))
            case Digest():
                self._hashing.ask(functools.partial(self._digest, action))
            case DescribeModel():
                self._describing.ask(functools.partial(self._describe, action))
            case StorePiece():
                self._describing.ask(functools.partial(self._store_piece, action))
            case RestartGroup():
                log.error("restarting the worker group: %s", action.cause)
                self._group_events(self._group.restart(action.cause, time.monotonic()))
            case Drained():
                self._over = True

    def _send(
        self, peer: bytes, frames: Sequence[codec.Frame], *, answers: str | None = None, replaces: str | None = None
    ) -> None:
        self._note_lost(self._clients.send(peer, frames, answers=answers, replaces=replaces))

    def _note_lost(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            self._take(Undelivered(job_id=job_id))

    def _digest(self, action: Digest) -> Callable[[], None]:
        """On the helper thread."""
        digest = content_digest(action.tensors) if action.tensors else job_digest("", "", action.frames)
        return lambda: self._take(Digested(token=action.token, digest=digest))

    def _describe(self, action: DescribeModel) -> Callable[[], None]:
        """On the helper thread."""
        try:
            frames = self._described(action)
        except Exception as problem:
            frames = _failed(problem, action.request, "its list of models could not be read")

        def answer() -> None:
            self._send(action.peer, frames)
            self._take(DescribeAnswered(peer=action.peer, user=action.user))

        return answer

    def _store_piece(self, action: StorePiece) -> Callable[[], None]:
        """On the helper thread."""
        asked = action.message
        try:
            data = None if action.data is None else action.data.data
            have = self._store.put(asked.digest, asked.size_bytes, asked.offset, data)
            frames = codec.encode(Stored(request=asked.request, digest=asked.digest, have_bytes=have))
        except Exception as problem:
            frames = _failed(problem, asked.request, "what was sent could not be kept")

        def answer() -> None:
            self._send(action.peer, frames)
            self._take(DescribeAnswered(peer=action.peer, user=action.user))

        return answer

    def _described(self, action: DescribeModel) -> list[codec.Frame]:
        if not action.model:
            return codec.encode(Described(request=action.request, model=""), manifest=self._catalog.list_models())
        found = self._catalog.describe(action.model)
        answer = Described(
            request=action.request,
            model=action.model,
            fingerprint=found.file.fingerprint,
            metadata=found.header.metadata,
        )
        return codec.encode(answer, manifest=found.header.tensors)


def _is_due(at_s: float | None, now_s: float) -> bool:
    return at_s is not None and now_s >= at_s


def _failed(problem: Exception, request: int, what: str) -> list[codec.Frame]:
    """What a client is told of a problem on the helper thread, as frames that always fit: names in files may be long."""
    error = _told(problem, what)
    return codec.encode(Failed(code=error.code, message=error.message[:TEXT_LENGTH], request=request))


def _told(problem: Exception, what: str) -> TuttiError:
    """The client's own mistake, or that there is no room; else that the log says more."""
    if isinstance(problem, RequestRefused | QueueFull):
        return problem
    log.error("%s", what, exc_info=problem)
    return InternalError(f"Look at the daemon's log: {what}.")
