"""Previews are latest only, at most eight a second, and never two in a connection that has not taken the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tutti.backend.broker.previews import PreviewSlots
from tutti.backend.wire.codec import Frame


class Wire:
    """Stands for the socket: remembers what was sent, and lets a test say when it has left."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, object]] = []
        self.takes = True
        self.has_left = True

    def __call__(self, peer: bytes, frames: Sequence[Frame]) -> Callable[[], bool] | None:
        if not self.takes:
            return None
        self.sent.append((peer, frames[0]))
        return lambda: self.has_left


def test_the_first_preview_goes_at_once_and_then_eight_a_second() -> None:
    wire = Wire()
    slots = PreviewSlots(wire)
    for step in range(100):
        slots.offer("job", b"A", [step], step * 0.01)
        slots.flush(step * 0.01)
    assert len(wire.sent) == 8
    assert wire.sent[0] == (b"A", 0)


def test_a_newer_preview_replaces_the_one_that_waits() -> None:
    wire = Wire()
    slots = PreviewSlots(wire)
    for step, now_s in enumerate((0.0, 0.01, 0.02)):
        slots.offer("job", b"A", [step], now_s)
    slots.flush(0.2)
    assert [frame for _, frame in wire.sent] == [0, 2]


def test_nothing_is_sent_into_a_connection_that_has_not_taken_the_last_one() -> None:
    wire = Wire()
    slots = PreviewSlots(wire)
    slots.offer("job", b"A", [0], 0.0)
    wire.has_left = False
    for step in range(1, 50):
        slots.offer("job", b"A", [step], float(step))
    assert len(wire.sent) == 1
    wire.has_left = True
    slots.flush(100.0)
    assert [frame for _, frame in wire.sent] == [0, 49]


def test_a_preview_that_cannot_be_sent_now_waits_for_later() -> None:
    wire = Wire()
    wire.takes = False
    slots = PreviewSlots(wire)
    slots.offer("job", b"A", [0], 0.0)
    assert slots.next_due_s(0.0) is not None
    wire.takes = True
    slots.flush(0.1)
    assert len(wire.sent) == 1
    assert slots.next_due_s(0.1) is None


def test_nothing_comes_after_the_end_of_a_job_or_of_a_client() -> None:
    wire = Wire()
    slots = PreviewSlots(wire)
    for job in ("one", "two"):
        slots.offer(job, job.encode(), [0], 0.0)
        slots.offer(job, job.encode(), [1], 0.01)
    slots.end("one")
    slots.forget(b"two")
    slots.flush(10.0)
    assert len(wire.sent) == 2


def test_a_client_that_comes_back_on_another_connection_gets_previews_there() -> None:
    wire = Wire()
    slots = PreviewSlots(wire)
    slots.offer("job", b"A", [0], 0.0)
    wire.has_left = False
    slots.offer("job", b"B", [1], 1.0)
    assert wire.sent[-1] == (b"B", 1)
