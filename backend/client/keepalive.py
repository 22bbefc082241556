"""Pings while an Evaluate trajectory is open but nobody waits: ComfyUI may compute for longer than the lease between two calls."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Keepalive:
    """A thread that exists only while trajectories are held.

    libzmq allows a socket to change threads if a full memory barrier lies between: ``lock`` is that barrier. While somebody else
    holds it no ping is needed, because whoever waits for the daemon pings too.
    """

    def __init__(self, lock: threading.RLock, ping: Callable[[], None], period_s: float) -> None:
        self._lock = lock
        self._ping = ping
        self._period_s = period_s
        self._held: set[str] = set()
        self._stop: threading.Event | None = None

    def hold(self, job_id: str) -> None:
        """Keep this trajectory alive from now on."""
        self._held.add(job_id)
        if self._stop is None:
            self._stop = threading.Event()
            threading.Thread(target=self._run, args=(self._stop,), name="tutti-keepalive", daemon=True).start()

    def drop(self, job_id: str) -> None:
        """This trajectory has ended."""
        self._held.discard(job_id)
        if not self._held:
            self.stop()

    def stop(self) -> None:
        """Stop pinging. Does not wait for the thread: it may be about to take the lock that the caller holds."""
        self._held.clear()
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._period_s):
            if self._lock.acquire(blocking=False):
                try:
                    if not stop.is_set():
                        self._ping()
                finally:
                    self._lock.release()
