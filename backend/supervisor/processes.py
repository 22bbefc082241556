"""Processes that are not our children, held by pidfd: a number that is given to another process later cannot be hit by mistake."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass


@dataclass(slots=True)
class HeldProcess:
    """One process of the group."""

    pid: int
    fd: int
    """Becomes readable when it has ended."""

    @classmethod
    def hold(cls, pid: int) -> HeldProcess | None:
        """Hold a process by its id; None if it has ended."""
        try:
            return cls(pid, os.pidfd_open(pid))
        except ProcessLookupError:
            return None

    def has_ended(self) -> bool:
        """Whether it is gone (a zombie is)."""
        return bool(select.select([self.fd], [], [], 0)[0])

    def kill(self) -> None:
        """Kill it, and what it started in its session."""
        if self.has_ended():
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # A rank leads its own session (torchrun starts it so); its helpers, such as compilers, are in the same group.
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, signal.SIGKILL)

    def release(self) -> None:
        """Let go of it."""
        os.close(self.fd)
