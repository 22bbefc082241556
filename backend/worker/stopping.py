"""SIGTERM: a rank that waits for work ends at once, a rank at work leaves its job together with the others."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Remembers SIGTERM and SIGINT, and has a descriptor to wait on.

    An interrupted system call alone would not do: a signal that comes just before the call, or to another thread, interrupts nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether this process was told to stop."""
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def install(self) -> None:
        """Take the signals over. In the main thread."""
        for number in _SIGNALS:
            signal.signal(number, self._remember)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Readable after any signal; :meth:`clear` makes it wait again."""
        return self._read_fd

    def clear(self) -> None:
        """Forget what made the descriptor readable; :attr:`requested` stays."""
        try:
            os.read(self._read_fd, 4096)
        except BlockingIOError:
            return

    def restore(self) -> None:
        """Give the signals back to Python's own handling."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
