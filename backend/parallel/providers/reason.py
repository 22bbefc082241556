"""Why a kernel is not used: in full for the log of its rank, and without an exception's own message for clients.

Such a message is somebody else's text, and often names a path of this machine: the library that did not load, say.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import TuttiError


@dataclass(frozen=True, slots=True)
class Reason:
    """As a string, all of it."""

    text: str
    """For everybody."""
    detail: str = ""
    """For the log."""

    def __str__(self) -> str:
        return f"{self.text}: {self.detail}" if self.detail else self.text

    @property
    def shown(self) -> str:
        """For clients."""
        return f"{self.text}, see the rank's log" if self.detail else self.text


def reason_of(error: Exception, when: str = "") -> Reason:
    """What went wrong, in one line: ``RuntimeError: ...``, or ``RuntimeError as it is timed: ...``. Our own errors name no path."""
    kind = f"{type(error).__name__}{when}"
    message = str(error).strip().partition("\n")[0][:200]
    return Reason(f"{kind}: {message}") if isinstance(error, TuttiError) else Reason(kind, message)
