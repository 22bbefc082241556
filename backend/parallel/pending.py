"""Transfers under way, and transfers that start when others are over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch.distributed as dist


class Pending(Protocol):
    """A transfer under way. The buffers belong to it until :meth:`wait` returns."""

    def wait(self) -> None:
        """Return when the received buffers may be read (on a GPU: by the current stream). May be called again, and by any thread."""


class HopUnderWay:
    """The works of one hop; waiting for all of them ends it."""

    def __init__(self, works: Sequence[dist.Work | None]) -> None:
        self._works = list(works)
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:  # gloo would wait forever for a work that was waited for before
            while self._works:
                work = self._works[0]
                if work is not None:
                    work.wait()
                self._works.pop(0)


class LaterHop:
    """A hop that starts when earlier ones are over. A thread waits for them, in the place of a GPU's stream.

    A failure (another rank has gone) is raised by :meth:`wait`.
    """

    def __init__(self, start: Callable[[], Pending], after: Sequence[Pending]) -> None:
        self._start = start
        self._after = after
        self._hop: Pending | None = None
        self._failure: Exception | None = None
        # A daemon: a rank that has failed elsewhere must not stay for a hop that never comes.
        self._thread = threading.Thread(target=self._run, name="tutti-later-hop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for earlier in self._after:
                earlier.wait()
            self._hop = self._start()
        except Exception as error:
            self._failure = error

    def wait(self) -> None:
        self._thread.join()
        if self._hop is None:
            raise self._failure or RuntimeError("A later hop did not start.")
        self._hop.wait()


class OpenHops:
    """The hops of a transport that are not over: from just before one is started, or promised for later, until a wait for it has returned.

    One whose start or wait raised stays open for good: part of it may still be on its way, and would meet a later hop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hops: set[_Counted] = set()

    @property
    def count(self) -> int:
        """How many there are."""
        with self._lock:
            return len(self._hops)

    def begin(self, start: Callable[[], Pending]) -> Pending:
        """Start a hop, or promise one, that is open from now on. Waiting for what this returns closes it."""
        hop = _Counted(self._close)
        with self._lock:
            self._hops.add(hop)
        hop.begin(start)
        return hop

    def _close(self, hop: _Counted) -> None:
        with self._lock:
            self._hops.discard(hop)


class _Counted:
    """A hop that says when it is over."""

    def __init__(self, close: Callable[[_Counted], None]) -> None:
        self._close = close
        self._hop: Pending | None = None

    def begin(self, start: Callable[[], Pending]) -> None:
        self._hop = start()

    def wait(self) -> None:
        if self._hop is None:
            raise RuntimeError("A hop did not start.")
        self._hop.wait()
        self._close(self)
