"""Keeps one worker group running: starts it, sees it die, starts it again within a budget, and leaves nobody behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from ..broker.events import GroupLost, GroupStarting
from .budget import RestartBudget
from .incarnation import GroupSettings, Incarnation
from .logs import rotate

log = logging.getLogger(__name__)

DYING_S = 10.0
"""A killed process that is not gone by then hangs in the kernel; the next group starts beside it."""
LOOK_S = 0.05
"""How often dying processes are looked at."""


class Supervisor:
    """Runs the incarnations of one group. Every method is called from the daemon's main thread."""

    def __init__(self, settings: GroupSettings, budget: RestartBudget | None = None) -> None:
        self._settings = settings
        self._budget = budget or RestartBudget()
        self._current: Incarnation | None = None
        self._dying: Incarnation | None = None
        self._dying_until_s = 0.0
        self._start_at_s: float | None = None
        self._hello_until_s: float | None = None
        self._was_ready = False
        self._failed = False

    def start(self, now_s: float) -> None:
        """Start the group with the next :meth:`step`."""
        self._settings.logs_dir.mkdir(mode=0o700, exist_ok=True)
        rotate(self._settings.logs_dir / "launcher.log")
        self._start_at_s = now_s

    def fds(self) -> Sequence[int]:
        """Readable when there is something to step for."""
        return [self._current.fd] if self._current else []

    def next_step_s(self) -> float | None:
        """When to step without anything readable."""
        if self._dying:
            return time.monotonic() + LOOK_S
        return self._start_at_s if self._start_at_s is not None else self._hello_until_s

    def step(self, now_s: float) -> list[GroupStarting | GroupLost]:
        """See what happened, and do what is due."""
        events: list[GroupStarting | GroupLost] = []
        if self._current:
            cause = self._current.look()
            if cause is None and self._hello_until_s is not None and now_s > self._hello_until_s:
                cause = f"not every rank was up after {self._settings.start_timeout_s:.0f} s"
            if cause:
                events.append(self._lose(self._current, cause, now_s))
        if self._dying and (self._dying.is_gone() or now_s > self._dying_until_s):
            if not self._dying.is_gone():
                log.error("processes %s do not end although they were killed", self._dying.pids)
            self._dying.clean_up()
            self._dying = None
        if self._start_at_s is not None and now_s >= self._start_at_s and self._dying is None:
            events.append(self._begin(now_s))
        return events

    def note_ready(self, now_s: float) -> None:
        """Every rank has said hello."""
        self._hello_until_s = None
        self._was_ready = True
        self._budget.note_ready(now_s)

    def note_work(self) -> None:
        """The ranks have completed a job."""
        self._budget.note_work()

    def restart(self, cause: str, now_s: float) -> list[GroupStarting | GroupLost]:
        """Kill the group and begin anew."""
        return [self._lose(self._current, cause, now_s)] if self._current else []

    def stop(self) -> None:
        """Kill the group, wait until it is gone, and start no other."""
        self._start_at_s = None
        until_s = time.monotonic() + DYING_S
        for incarnation in (self._current, self._dying):
            if incarnation is None:
                continue
            incarnation.kill()
            while not incarnation.is_gone() and time.monotonic() < until_s:
                time.sleep(0.01)
            incarnation.clean_up()
        self._current = self._dying = None

    def _begin(self, now_s: float) -> GroupStarting:
        self._start_at_s = None
        self._current = Incarnation(self._settings)
        self._hello_until_s = now_s + self._settings.start_timeout_s
        log.info("started %d ranks", self._settings.world_size)
        return GroupStarting(
            group_id=self._settings.group_id, incarnation=self._current.name, token=self._current.token
        )

    def _lose(self, incarnation: Incarnation, cause: str, now_s: float) -> GroupLost:
        incarnation.kill()
        self._current, self._dying, self._dying_until_s = None, incarnation, now_s + DYING_S
        self._hello_until_s = None
        wait_s = self._budget.note_death(now_s)
        # A group that never came up fails for a reason that another start will not change.
        self._failed = wait_s is None or not self._was_ready
        if wait_s is not None and not self._failed:
            self._start_at_s = now_s + wait_s
        # What ends the daemon at its start is said there, with the ranks' last words.
        level = logging.ERROR if self._was_ready else logging.INFO
        log.log(level, "the worker group is gone: %s%s", cause, "" if self._failed else "; starting it again")
        return GroupLost(incarnation=incarnation.name, cause=cause, failed=self._failed)
