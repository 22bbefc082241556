"""No orphans: a rank ends at once when the daemon does, however that happens.

Two independent means. The kernel kills a process whose parent's thread ends (``PR_SET_PDEATHSIG``): the launcher is bound to the
daemon that way and the ranks to the launcher. And the daemon keeps a FIFO open for writing, one per incarnation, that every process
of the group reads: its end of file comes when the daemon dies, or closes it to get rid of them all.

Standard library only: ranks call :func:`watch` before they import anything heavy.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

LIVENESS_VARIABLE: Final = "TUTTI_LIVENESS"
_PR_SET_PDEATHSIG: Final = 1


def watch(path: str | None = None, on_death: Callable[[], None] | None = None) -> None:
    """Bind this process's life to the daemon's. Call it first, from the main thread.

    Args:
        path: the FIFO; the environment's ``TUTTI_LIVENESS`` if None. Without either only the parent's death is watched.
        on_death: what to do when the daemon is gone; by default this process kills itself, which cannot fail or hang.
    """
    _die_with_parent()
    path = path or os.environ.get(LIVENESS_VARIABLE)
    if path is None:
        return
    try:
        # Not blocking: with the daemon already gone an open for reading would wait for a writer for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        (on_death or _kill_self)()
        return
    threading.Thread(
        target=_wait_for_end, args=(fd, on_death or _kill_self), name="tutti-liveness", daemon=True
    ).start()


def _wait_for_end(fd: int, on_death: Callable[[], None]) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    # Read before the first poll: a FIFO that never had a writer since it was opened does not poll as hung up.
    while _has_writer(fd):
        poller.poll()
    os.close(fd)
    on_death()


def _has_writer(fd: int) -> bool:
    try:
        return os.read(fd, 1) != b""
    except BlockingIOError:
        return True


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_with_parent() -> None:
    if sys.platform != "linux":
        return  # the FIFO alone has to do
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")


class Lifeline:
    """The daemon's end of the FIFO of one incarnation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path, 0o600)
        # For reading too: an open for writing alone waits for, or fails without, a reader.
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def cut(self) -> None:
        """End every process that watches it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self.path.unlink(missing_ok=True)
