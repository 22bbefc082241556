"""Latest-only slots for previews: at most eight a second of one job, and never a second one into a connection that has not taken the
first. A client that reads slowly misses previews; it costs nobody else anything, and no result is ever behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..wire.codec import Frame

SHORTEST_GAP_S = 0.125
RETRY_S = 0.05

Sender = Callable[[bytes, Sequence[Frame]], Callable[[], bool] | None]
"""Sends to a connection; returns what tells whether the bytes have left this process, or None if they could not be sent now."""


@dataclass(slots=True)
class Slot:
    """The previews of one job."""

    peer: bytes
    frames: Sequence[Frame] | None
    """The newest one that has not been sent."""
    sent_s: float = float("-inf")
    has_left: Callable[[], bool] = field(default=lambda: True)


@dataclass(slots=True)
class PreviewSlots:
    """One slot a job."""

    send: Sender
    _slots: dict[str, Slot] = field(default_factory=dict)

    def offer(self, job_id: str, peer: bytes, frames: Sequence[Frame], now_s: float) -> None:
        """A new preview: it replaces the one that waits."""
        slot = self._slots.get(job_id)
        if slot is None or slot.peer != peer:
            slot = self._slots[job_id] = Slot(peer, frames)
        slot.frames = frames
        self._try(slot, now_s)

    def flush(self, now_s: float) -> None:
        """Send what has become due."""
        for slot in self._slots.values():
            self._try(slot, now_s)

    def end(self, job_id: str) -> None:
        """The job has ended; what was not sent is dropped."""
        self._slots.pop(job_id, None)

    def forget(self, peer: bytes) -> None:
        """The client is gone."""
        self._slots = {job_id: slot for job_id, slot in self._slots.items() if slot.peer != peer}

    def next_due_s(self, now_s: float) -> float | None:
        """When :meth:`flush` has something to do; None if nothing waits."""
        waiting = [slot for slot in self._slots.values() if slot.frames is not None]
        return min((max(slot.sent_s + SHORTEST_GAP_S, now_s + RETRY_S) for slot in waiting), default=None)

    def _try(self, slot: Slot, now_s: float) -> None:
        if slot.frames is None or now_s - slot.sent_s < SHORTEST_GAP_S or not slot.has_left():
            return
        has_left = self.send(slot.peer, slot.frames)
        if has_left is not None:
            slot.frames, slot.sent_s, slot.has_left = None, now_s, has_left
