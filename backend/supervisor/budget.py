"""How often a worker group may be started again: a sliding window, cleared once the group has been stable or has done a job.

torchrun's own budget counts for the whole life of a process; a daemon lives for weeks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """The limits."""

    restarts: int = 5
    """Most restarts within the window."""
    window_s: float = 600.0
    stable_s: float = 60.0
    """After so long without a death nothing is held against the group any more."""
    backoff_s: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0)
    """Wait before the first, second, ... restart of a window; the last one repeats."""


@dataclass(slots=True)
class RestartBudget:
    """Counts deaths and decides."""

    settings: BudgetSettings = field(default_factory=BudgetSettings)
    _deaths_s: deque[float] = field(default_factory=deque)
    _ready_s: float | None = None
    _worked: bool = False

    def note_ready(self, now_s: float) -> None:
        """The group is up."""
        self._ready_s = now_s

    def note_work(self) -> None:
        """A job was completed: what kills the group now and then is some job, not its start."""
        self._worked = True

    def note_death(self, now_s: float) -> float | None:
        """The group died. Returns how long to wait before the restart, or None if there shall be none."""
        if self._worked or (self._ready_s is not None and now_s - self._ready_s >= self.settings.stable_s):
            self._deaths_s.clear()
        self._ready_s, self._worked = None, False
        while self._deaths_s and now_s - self._deaths_s[0] > self.settings.window_s:
            self._deaths_s.popleft()
        self._deaths_s.append(now_s)
        if len(self._deaths_s) > self.settings.restarts:
            return None
        backoff_s = self.settings.backoff_s
        return backoff_s[min(len(self._deaths_s), len(backoff_s)) - 1]
