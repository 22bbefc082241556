"""What the launcher tells the daemon, one JSON object a line, over a pipe that only they have."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

REPORT_FD_VARIABLE: Final = "TUTTI_REPORT_FD"
FOLLOWS_STATUS: Final = 70
"""Exit status of a rank that leaves a group which cannot go on (``EXIT_GROUP_BROKEN`` of the worker, which imports torch)."""
OUT_OF_MEMORY_STATUS: Final = 71
"""Likewise, because memory ran out on some ranks only (``EXIT_OUT_OF_MEMORY``)."""
FAILED_ALONE_STATUS: Final = 72
"""Likewise, because something else failed on some ranks only (``EXIT_FAILED_ALONE``)."""
NOT_STARTED_STATUS: Final = 73
"""Of a rank that never came to wait for work (``EXIT_NOT_STARTED``)."""
_LEFT: Final = {
    FOLLOWS_STATUS: "left because the ranks fell out of step or lost one another (their logs say why)",
    OUT_OF_MEMORY_STATUS: "left because memory ran out on a rank (use a smaller picture or batch, or another weight dtype)",
    FAILED_ALONE_STATUS: "left because a call failed and the ranks could not go on together (their logs say why)",
    NOT_STARTED_STATUS: "could not start (its log says why)",
}
"""What the statuses of ours mean, for clients: no path, host or key, and nothing that an error's text might hold."""
NAME_LENGTH: Final = 200
"""Longest name of an error, in characters. A line stays below PIPE_BUF (4096 bytes): it is written whole or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksStarted:
    """The ranks were spawned."""

    pids: tuple[int, ...]
    """In order of rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnded:
    """The first rank that ended."""

    rank: int
    pid: int
    signal: int | None
    """What killed it, or None."""
    status: int | None
    """What it exited with, or None."""

    def cause(self) -> str:
        """As the middle of a sentence."""
        return f"rank {self.rank} {how_it_ended(self.signal, self.status)}"


def first_cause(ends: Sequence[RankEnded]) -> RankEnded | None:
    """The end that explains the others, of those that were seen at once: a rank that notices another one's death follows it."""
    return min(ends, key=lambda end: (_depth(end), end.rank), default=None)


def _depth(end: RankEnded) -> int:
    """How likely another rank's end is behind this one: 0 is never."""
    if end.signal == signal.SIGTERM:
        return 2  # torchrun's agent ends the other ranks by it
    if end.signal is not None:
        return 0
    return 3 if end.status == FOLLOWS_STATUS else 1  # which says only that the group could not go on


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherFailed:
    """The launcher could not do its work."""

    error: str
    """The type of what went wrong; its text stands in the launcher's log."""

    def cause(self) -> str:
        """As the middle of a sentence."""
        return f"the ranks could not be started ({self.error}, the launcher's log tells more)"


Report = RanksStarted | RankEnded | LauncherFailed
_REPORTS: dict[str, type[Any]] = {cls.__name__: cls for cls in (RanksStarted, RankEnded, LauncherFailed)}


def how_it_ended(number: int | None, status: int | None) -> str:
    """``was killed by signal 9 (SIGKILL)``, ``ended with exit status 3``, or what the status means."""
    if number is None:
        return _LEFT.get(status or 0, f"ended with exit status {status}")
    try:
        return f"was killed by signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"was killed by signal {number}"


def write_report(fd: int, report: Report) -> None:
    """Tell the daemon. If it is gone nobody needs to know."""
    if isinstance(report, LauncherFailed):
        report = LauncherFailed(error=report.error[:NAME_LENGTH])  # before it is JSON: half an object cannot be read
    line = json.dumps({"report": type(report).__name__, **asdict(report)})
    try:
        os.write(fd, line.encode("utf-8") + b"\n")
    except BrokenPipeError:
        return


def read_report(line: bytes) -> Report | None:
    """A line as a report; None if it is none."""
    try:
        data = json.loads(line)
        cls = _REPORTS[data.pop("report")]
        if "pids" in data:
            data["pids"] = tuple(int(pid) for pid in data["pids"])
        report: Report = cls(**data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return report
