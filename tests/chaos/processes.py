"""The processes of a daemon, seen from outside: who they are, how to kill one, and whether they are gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

import psutil

from tests.support.daemon import Daemon

STATE_S = 60.0
"""How long a daemon may take to reach a state that is not promised for a time."""


def rank_pids(daemon: Daemon) -> list[int]:
    """In order of rank, as the ranks themselves said."""
    return [rank.pid for rank in daemon.status().ranks]


def descendants(daemon: Daemon) -> list[psutil.Process]:
    """The launcher, the ranks, and whatever they started."""
    return psutil.Process(daemon.process.pid).children(recursive=True)


def launcher(daemon: Daemon) -> psutil.Process:
    """The daemon's only child."""
    (child,) = psutil.Process(daemon.process.pid).children()
    return child


def kill(pid: int, number: int = signal.SIGKILL) -> float:
    """Send a signal; returns when."""
    os.kill(pid, number)
    return time.monotonic()


def left_of(processes: Sequence[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Which of these are still there after so long; returns as soon as none is."""
    deadline_s = time.monotonic() + within_s
    while (left := [process for process in processes if _lives(process)]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return left


def _lives(process: psutil.Process) -> bool:
    """A zombie has ended: whether somebody reaps it is that somebody's business."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = STATE_S) -> float:
    """Wait for a condition; returns the seconds it took."""
    start_s = time.monotonic()
    while not true():
        assert time.monotonic() - start_s < timeout_s, f"not {what} after {timeout_s} s"
        time.sleep(0.02)
    return time.monotonic() - start_s
