"""What was chosen, and what was switched off and why, in sentences for people."""

from __future__ import annotations

import logging
from typing import Final

KEPT: Final = 32

log = logging.getLogger(__name__)
_notes: list[str] = []


def note(text: str, *, warn: bool = False) -> None:
    """Log a sentence, and keep it unless it was said before."""
    log.log(logging.WARNING if warn else logging.INFO, text)
    if text not in _notes:
        _notes.append(text)
        del _notes[:-KEPT]


def reports() -> list[str]:
    """The sentences of this process, the latest last."""
    return list(_notes)
