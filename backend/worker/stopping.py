"""SIGTERM: a rank that waits for work ends at once, a rank at work leaves its job together with the others."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stopped(Exception):
    """The rank was told to stop while it waited for work."""


class StopSignal:
    """Remembers SIGTERM and SIGINT. Made in the main thread."""

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False

    def install(self) -> None:
        """From now on the signals set :attr:`requested`."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    @contextlib.contextmanager
    def interrupts_waiting(self) -> Iterator[None]:
        """Within the body a signal raises :class:`Stopped`, which ends a wait on the socket."""
        self._waiting = True
        try:
            if self.requested:
                raise Stopped
            yield
        finally:
            self._waiting = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._waiting:
            raise Stopped
