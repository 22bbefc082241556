"""Submissions whose model is being looked up, and what their connections sent meanwhile. No I/O: messages in, steps out.

A model's folder may lie on a drive that answers late. So the catalog is asked away from the main loop, unless it has answered just now.
Until it answers, the connection that asked is held: what it sends is kept behind its submission, so that no Cancel, Upload or later turn
overtakes it. The catalog answers one question after the other: submissions of other connections whose model it has not found just now wait
for it too, and nothing else does.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field, replace

from ..errors import Busy, QueueFull, TuttiError
from ..wire.messages import Evaluate, Failed, Ping, Sample
from .events import ClientGarbled, ClientSent, ModelFile
from .settings import MIB

FRESH_S = 1.0
"""An answer is taken again for so long. Whoever replaces a checkpoint and submits a job sooner than that gets the old one."""
LONGEST_S = 60.0
"""A drive that has not answered after so long is given up for this submission."""
HELD_MESSAGES = 64
"""Kept behind one submission; the next one is refused."""
HELD_BYTES = 1024 * MIB
"""Kept for all held connections together, their submissions included; what goes beyond is refused."""

Arrived = ClientSent | ClientGarbled


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp:
    """Ask the catalog, away from the main loop; its answer goes to :meth:`Lookups.found`."""

    peer: bytes
    token: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Tell a client that there is no room to keep its message."""

    peer: bytes
    message: Failed


Step = ClientSent | ClientGarbled | LookUp | Refusal
"""What the server does next: let the broker handle an event, ask the catalog, or answer."""


@dataclass(slots=True)
class _Held:
    """One connection's submission, and what came after it."""

    submission: ClientSent
    token: int
    until_s: float
    behind: deque[Arrived] = field(default_factory=deque)

    @property
    def size_bytes(self) -> int:
        return self.submission.size_bytes + sum(_size_bytes(event) for event in self.behind)


class Lookups:
    """Gives every submission its model, and keeps each connection's messages in order meanwhile."""

    def __init__(self) -> None:
        self._held: dict[bytes, _Held] = {}
        self._recent: dict[str, tuple[ModelFile, float]] = {}
        """Model name -> its file, and until when that may be believed. Refusals are not kept: a missing file may come any moment."""
        self._tokens = itertools.count(1)

    def arrived(self, event: Arrived, now_s: float) -> list[Step]:
        """A client's message. A Ping passes: it says that the connection lives, and changes nothing that could be overtaken."""
        held = self._held.get(event.peer)
        if held is None:
            ready = self._ready(event, now_s)
            if ready is not None:
                return [ready]
        elif isinstance(event, ClientSent) and isinstance(event.received.message, Ping):
            return [event]
        if not self._has_room(held, event):
            return [_refusal(event)]
        if held is None:
            return self._hold(event, deque(), now_s)
        held.behind.append(event)
        return []

    def found(self, lookup: LookUp, answer: ModelFile | TuttiError, now_s: float) -> list[Step]:
        """The catalog's answer: its submission goes on, and what waited behind it. Nothing if it was given up before."""
        if isinstance(answer, ModelFile):
            self._recent = {name: known for name, known in self._recent.items() if now_s < known[1]}
            self._recent[lookup.model] = (answer, now_s + FRESH_S)
        held = self._held.get(lookup.peer)
        return self._release(held, answer, now_s) if held is not None and held.token == lookup.token else []

    def overdue(self, now_s: float) -> list[Step]:
        """Submissions that waited too long go on with an error, and what waited behind them."""
        error = Busy(
            f"Try again when the drive with the daemon's models answers: it has not for {LONGEST_S:.0f} s, and the model was not found."
        )
        late = [held for held in self._held.values() if now_s >= held.until_s]
        return [step for held in late for step in self._release(held, error, now_s)]

    def _ready(self, event: Arrived, now_s: float) -> Arrived | None:
        """The event as the broker may have it now; None if the catalog has to be asked first."""
        model = _model_of(event)
        if model is None or not isinstance(event, ClientSent):
            return event
        known = self._recent.get(model)
        return replace(event, model=known[0]) if known is not None and now_s < known[1] else None

    def _hold(self, event: Arrived, behind: deque[Arrived], now_s: float) -> list[Step]:
        model = _model_of(event)
        if model is None or not isinstance(event, ClientSent):
            raise ValueError("Hold a submission: this message names no model.")
        token = next(self._tokens)
        self._held[event.peer] = _Held(event, token, now_s + LONGEST_S, behind)
        return [LookUp(peer=event.peer, token=token, model=model)]

    def _release(self, held: _Held, answer: ModelFile | TuttiError, now_s: float) -> list[Step]:
        """The submission, then what is behind it, up to the next one whose model has to be looked up."""
        del self._held[held.submission.peer]
        steps: list[Step] = [replace(held.submission, model=answer)]
        while held.behind:
            event = held.behind.popleft()
            ready = self._ready(event, now_s)
            if ready is None:
                return steps + self._hold(event, held.behind, now_s)
            steps.append(ready)
        return steps

    def _has_room(self, held: _Held | None, event: Arrived) -> bool:
        if held is not None and len(held.behind) >= HELD_MESSAGES:
            return False
        return sum(one.size_bytes for one in self._held.values()) + _size_bytes(event) <= HELD_BYTES


def _model_of(event: Arrived) -> str | None:
    """The model that has to be looked up for this message: a Sample's, or that of an Evaluate's first turn."""
    message = event.received.message if isinstance(event, ClientSent) else None
    if isinstance(message, Sample) or (isinstance(message, Evaluate) and message.turn == 0):
        return message.on.model
    return None


def _size_bytes(event: Arrived) -> int:
    return event.size_bytes if isinstance(event, ClientSent) else 0


def _refusal(event: Arrived) -> Refusal:
    message = event.received.message if isinstance(event, ClientSent) else None
    failed = Failed(
        code=QueueFull.code,
        message="Try again later: the daemon still looks for the model of a job, and too much waits behind such jobs already.",
        request=getattr(message, "request", None),
        job_id=getattr(message, "job_id", None),
    )
    return Refusal(peer=event.peer, message=failed)
