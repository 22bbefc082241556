"""Submissions whose model is being looked up, and what their connections sent meanwhile. No I/O: messages in, steps out.

A model's folder may lie on a drive that answers late. So the catalog is asked away from the main loop, unless it has answered just now.
Until it answers, the connection that asked is held: what it sends is kept behind its submission, so that no Cancel, Upload or later turn
overtakes it, and counts in the quotas of whoever sent it. The catalog answers one question after the other: submissions of other connections whose model it has not found just now wait
for it too, and nothing else does.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, replace

from ..errors import Busy, Draining, QueueFull, TuttiError
from ..wire.messages import Cancel, Evaluate, Failed, Ping, Release, Sample
from .clients import ClientKey, Connections
from .events import ClientGarbled, ClientSent, ModelFile
from .quotas import Accounts

FRESH_S = 1.0
"""An answer is taken again for so long. A job that is submitted sooner than that after its checkpoint was replaced is given the old
fingerprint: ranks that hold the old weights compute with them, others read the new file and take it for the old one until the next job
of it is looked up."""
LONGEST_S = 60.0
"""A drive that has not answered after so long is given up for this submission."""
HELD_MESSAGES = 64
"""Kept behind one submission; the next one is refused."""

Arrived = ClientSent | ClientGarbled
Wanted = tuple[str, ...]
"""The names of a model and of the LoRAs on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp:
    """Ask the catalog, away from the main loop; its answer goes to :meth:`Lookups.found`."""

    peer: bytes
    token: int
    wanted: Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Tell a client that there is no room to keep its message."""

    peer: bytes
    message: Failed


Step = ClientSent | ClientGarbled | LookUp | Refusal
"""What the server does next: let the broker handle an event, ask the catalog, or answer."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A message that cannot go on yet."""

    event: Arrived
    payer: ClientKey
    """In whose quotas it counts."""

    @property
    def size_bytes(self) -> int:
        return self.event.size_bytes if isinstance(self.event, ClientSent) else 0


@dataclass(slots=True)
class _Held:
    """One connection's submission, and what came after it."""

    submission: ClientSent
    token: int
    until_s: float
    kept: deque[_Kept]
    """The submission first."""


class Lookups:
    """Gives every submission its model, and keeps each connection's messages in order meanwhile."""

    def __init__(self, accounts: Accounts, connections: Connections) -> None:
        self._accounts = accounts
        self._connections = connections
        self._held: dict[bytes, _Held] = {}
        self._recent: dict[Wanted, tuple[ModelFile, float]] = {}
        """Model and LoRAs -> their files, and until when that may be believed. Refusals are not kept: a missing file may come any moment."""
        self._tokens = itertools.count(1)
        self._draining = False

    def arrived(self, event: Arrived, now_s: float) -> list[Step]:
        """A client's message. A Ping passes: it says that the connection lives, and changes nothing that could be overtaken."""
        held = self._held.get(event.peer)
        if held is None:
            ready = self._ready(event, now_s)
            if ready is not None:
                return [ready]
        elif isinstance(event, ClientSent) and isinstance(event.received.message, Ping):
            return [event]
        kept = _Kept(event, self._payer(event))
        try:
            self._take(kept, held)
        except QueueFull as error:
            return [_refusal(event, error)]
        if held is None:
            return self._hold(deque([kept]), now_s)
        held.kept.append(kept)
        return []

    def found(self, lookup: LookUp, answer: ModelFile | TuttiError, now_s: float) -> list[Step]:
        """The catalog's answer: its submission goes on, and what waited behind it. Nothing if it was given up before."""
        if isinstance(answer, ModelFile):
            self._recent = {name: known for name, known in self._recent.items() if now_s < known[1]}
            self._recent[lookup.wanted] = (answer, now_s + FRESH_S)
        held = self._held.get(lookup.peer)
        return self._release(held, answer, now_s) if held is not None and held.token == lookup.token else []

    def overdue(self, now_s: float) -> list[Step]:
        """Submissions that waited too long go on with an error, and what waited behind them."""
        error = Busy(
            f"Try again when the drive with the daemon's models answers: it has not for {LONGEST_S:.0f} s, and the model was not found."
        )
        late = [held for held in self._held.values() if now_s >= held.until_s]
        return [step for held in late for step in self._release(held, error, now_s)]

    def drain(self, now_s: float) -> list[Step]:
        """The daemon takes no new work: submissions go on without their model, to be refused, and none is held any more."""
        self._draining = True
        return [step for held in list(self._held.values()) for step in self._release(held, _draining(), now_s)]

    def _ready(self, event: Arrived, now_s: float) -> Arrived | None:
        """The event as the broker may have it now; None if the catalog has to be asked first."""
        wanted = _wanted_by(event)
        if wanted is None or not isinstance(event, ClientSent):
            return event
        if self._draining:
            return replace(event, model=_draining())
        known = self._recent.get(wanted)
        return replace(event, model=known[0]) if known is not None and now_s < known[1] else None

    def _hold(self, kept: deque[_Kept], now_s: float) -> list[Step]:
        event = kept[0].event
        wanted = _wanted_by(event)
        if wanted is None or not isinstance(event, ClientSent):
            raise ValueError("Hold a submission: this message names no model.")
        token = next(self._tokens)
        self._held[event.peer] = _Held(event, token, now_s + LONGEST_S, kept)
        return [LookUp(peer=event.peer, token=token, wanted=wanted)]

    def _release(self, held: _Held, answer: ModelFile | TuttiError, now_s: float) -> list[Step]:
        """The submission, then what is behind it, up to the next one whose model has to be looked up."""
        del self._held[held.submission.peer]
        self._let_first_go(held.kept)
        steps: list[Step] = [replace(held.submission, model=answer)]
        while held.kept:
            ready = self._ready(held.kept[0].event, now_s)
            if ready is None:
                return steps + self._hold(held.kept, now_s)
            self._let_first_go(held.kept)
            steps.append(ready)
        return steps

    def _payer(self, event: Arrived) -> ClientKey:
        """The client; its key alone if the connection has not said hello under it (the broker will refuse that)."""
        if not isinstance(event, ClientSent):
            return ("", "")  # of 0 bytes
        owner = self._connections.owner(event.peer)
        return owner if owner is not None and owner[0] == event.user else (event.user, "")

    def _take(self, kept: _Kept, held: _Held | None) -> None:
        """Count a message that is going to be kept.

        Raises:
            QueueFull: it may not be. Cancel and Release only have to find room among the messages: they free bytes.
        """
        if held is not None and len(held.kept) > HELD_MESSAGES:
            raise QueueFull(
                "Try again later: the daemon still looks for the model of a job, and too much waits behind it."
            )
        message = kept.event.received.message if isinstance(kept.event, ClientSent) else None
        if not isinstance(message, Cancel | Release):
            self._accounts.check(kept.payer, jobs=0, size_bytes=kept.size_bytes)
        self._accounts.take(kept.payer, size_bytes=kept.size_bytes)

    def _let_first_go(self, kept: deque[_Kept]) -> None:
        first = kept.popleft()
        self._accounts.give_back(first.payer, size_bytes=first.size_bytes)


def _wanted_by(event: Arrived) -> Wanted | None:
    """What has to be looked up for this message: the model and LoRAs of a Sample, or of an Evaluate's first turn."""
    message = event.received.message if isinstance(event, ClientSent) else None
    if isinstance(message, Sample) or (isinstance(message, Evaluate) and message.turn == 0):
        return (message.on.model, *(lora.name for lora in message.on.loras or ()))
    return None


def _draining() -> Draining:
    return Draining("Send it again when the daemon is back: it is being stopped and takes no new work.")


def _refusal(event: Arrived, error: QueueFull) -> Refusal:
    message = event.received.message if isinstance(event, ClientSent) else None
    failed = Failed(
        code=error.code,
        message=error.message,
        request=getattr(message, "request", None),
        job_id=getattr(message, "job_id", None),
    )
    return Refusal(peer=event.peer, message=failed)
