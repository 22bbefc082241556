"""Results kept for clients that ask again: for ten minutes, within a bound of bytes, the oldest given up first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..wire.codec import Frame


@dataclass(slots=True)
class KeptResult:
    """One Result message."""

    frames: Sequence[Frame]
    size_bytes: int
    until_s: float


@dataclass(slots=True)
class Shelf:
    """Results in order of their arrival, with a bound of its own."""

    limit_bytes: int
    kept: OrderedDict[str, KeptResult] = field(default_factory=OrderedDict)
    size_bytes: int = 0

    def put(self, job_id: str, result: KeptResult) -> list[str]:
        """Keep a result; returns the ids that had to go for it (itself, if it is larger than the shelf)."""
        self.kept[job_id] = result
        self.size_bytes += result.size_bytes
        gone = []
        while self.size_bytes > self.limit_bytes:
            oldest = next(iter(self.kept))
            self.take(oldest)
            gone.append(oldest)
        return gone

    def take(self, job_id: str) -> KeptResult | None:
        """Remove and return a result, if it is here."""
        result = self.kept.pop(job_id, None)
        if result:
            self.size_bytes -= result.size_bytes
        return result

    def expire(self, now_s: float) -> list[str]:
        """Drop what is too old; returns the ids."""
        gone = [job_id for job_id, result in self.kept.items() if result.until_s <= now_s]
        for job_id in gone:
            self.take(job_id)
        return gone


@dataclass(slots=True)
class KeptResults:
    """Two shelves: what nobody has received yet is worth more than what was handed over already."""

    kept_s: float
    delivered: Shelf
    undelivered: Shelf

    def put(
        self, job_id: str, frames: Sequence[Frame], now_s: float, *, delivered: bool, until_s: float | None = None
    ) -> list[str]:
        """Keep a result; returns the ids of results that are given up for it."""
        size_bytes = sum(memoryview(frame).nbytes for frame in frames)
        result = KeptResult(frames, size_bytes, now_s + self.kept_s if until_s is None else until_s)
        return (self.delivered if delivered else self.undelivered).put(job_id, result)

    def hand_over(self, job_id: str, now_s: float) -> tuple[Sequence[Frame], list[str]] | None:
        """A kept result that is being delivered now, and the ids given up because it changes shelves; None if it is not kept."""
        result = self.undelivered.take(job_id) or self.delivered.take(job_id)
        if result is None:
            return None
        return result.frames, self.put(job_id, result.frames, now_s, delivered=True, until_s=result.until_s)

    def discard(self, job_id: str) -> None:
        """Forget a result, if it is kept."""
        self.undelivered.take(job_id)
        self.delivered.take(job_id)

    def expire(self, now_s: float) -> list[str]:
        """Drop what is too old; returns the ids."""
        return self.delivered.expire(now_s) + self.undelivered.expire(now_s)
