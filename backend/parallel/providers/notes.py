"""What attentions run on, what was chosen for them, and what was switched off and why, in sentences for people.

The log is told about every case. Clients are told about the process as it is: see :meth:`AttentionNotes.parts`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

from .reason import Reason

KEPT: Final = 32

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Trouble:
    cases: set[str] = field(default_factory=set)
    why: str = ""
    """The last time."""


class AttentionNotes:
    """Of one process."""

    def __init__(self) -> None:
        self._reports: list[str] = []
        self._running: dict[str, None] = {}
        """In order of first use."""
        self._next_turn = False
        self._troubles: dict[str, _Trouble] = {}

    def begin_turn(self) -> None:
        """The attentions that follow belong to another turn. What the last one ran on is told until the first of them."""
        self._next_turn = True

    def runs(self, kernel: str) -> None:
        """An attention runs on this kernel. Told of every one, so it must cost nothing."""
        if self._next_turn:
            self._next_turn = False
            self._running.clear()
        self._running[kernel] = None

    def chose(self, case: str, kernel: str) -> None:
        """This kernel won a case."""
        self._report(f"attention {case}: {kernel}", logging.INFO)

    def trouble(self, what: str, case: str, reason: Reason) -> None:
        """``what`` ("flash is off") holds for a case, and not because anybody wanted it."""
        self._report(f"{what} for {case}: {reason}", logging.WARNING)
        known = self._troubles.setdefault(what, _Trouble())
        known.cases.add(case)
        known.why = reason.shown

    def reports(self) -> list[str]:
        """What the log was told, the latest last."""
        return list(self._reports)

    def parts(self) -> list[str]:
        """For clients: the kernels of the last turn that had attentions; then each trouble since the process began, with its latest reason.

        Two kernels, one of them wrong elsewhere: ``["flash, efficient", "flash is off for 2 shapes: its output is off by ..."]``
        """
        running = ", ".join(self._running)
        troubles = [f"{what} for {_shapes(len(it.cases))}: {it.why}" for what, it in self._troubles.items()]
        return [*([running] if running else []), *troubles]

    def _report(self, text: str, level: int) -> None:
        """Log a sentence, and keep it unless it was said before."""
        log.log(level, text)
        if text not in self._reports:
            self._reports.append(text)
            del self._reports[:-KEPT]


def _shapes(count: int) -> str:
    return f"{count} shape{'s' if count > 1 else ''}"


NOTES: Final = AttentionNotes()
"""Of this process."""
