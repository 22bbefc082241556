"""What ``tutti doctor`` finds: one line each, and the fix where one is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["good", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    """Short name: ``torch``, ``shared memory``."""
    level: Level
    """``problem``: the daemon cannot work, or not as asked. ``note``: it works, and there is something to know."""
    text: str
    """What was found."""
    fix: str = ""
    """What to do; a problem always has one."""


def good(topic: str, text: str) -> Finding:
    """All is well here."""
    return Finding(topic=topic, level="good", text=text)


def note(topic: str, text: str, fix: str = "") -> Finding:
    """It works; this is worth knowing."""
    return Finding(topic=topic, level="note", text=text, fix=fix)


def problem(topic: str, text: str, fix: str) -> Finding:
    """It does not work until this is put right."""
    return Finding(topic=topic, level="problem", text=text, fix=fix)
