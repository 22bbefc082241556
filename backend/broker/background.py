"""One thread that does slow things in the order in which they were asked for, and says when something is done.

Hashing releases the interpreter lock and listing folders waits for disks: neither may keep the main loop from its sockets.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

Work = Callable[[], Callable[[], None]]
"""Runs on the thread; what it returns is run on the main loop."""


class Background:
    """A first-in, first-out helper thread. ``fd`` becomes readable when :meth:`collect` has something to run."""

    def __init__(self, name: str) -> None:
        self._asked: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.fd, self._wake_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._wake_fd, False)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def ask(self, work: Work) -> None:
        """Do this after everything that was asked for before."""
        self._asked.put(work)

    def collect(self) -> None:
        """Run what the finished work wants run here."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            return
        while True:
            try:
                follow_up = self._ready.get_nowait()
            except queue.Empty:
                return
            follow_up()

    def close(self) -> None:
        """Stop after the work at hand; what was asked for and not begun is dropped."""
        while not self._asked.empty():
            self._asked.get_nowait()
        self._asked.put(None)
        self._thread.join(timeout=2.0)
        if not self._thread.is_alive():  # one that hangs in a disk would write into whatever gets the number next
            os.close(self.fd)
            os.close(self._wake_fd)

    def _run(self) -> None:
        while True:
            work = self._asked.get()
            if work is None:
                return
            try:
                self._ready.put(work())
            except Exception:
                log.exception("work in the background failed")
            try:
                os.write(self._wake_fd, b"\0")
            except BlockingIOError:
                continue  # the pipe is full of wake-ups already
