"""Digests that are being computed elsewhere, and what each one is for.

Hashing 5 MiB takes as long as sending it, so no job waits for it: a digest is only needed when an id comes a second time. Whoever
computes them answers in the order in which they were asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .clients import ClientKey
from .events import ClientSent
from .uploads import Key


@dataclass(frozen=True, slots=True)
class OfJob:
    """The bytes of an accepted job."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class OfSubmission:
    """The bytes of a submission whose id is known already: are they the same?"""

    event: ClientSent
    owner: ClientKey
    job_id: str


@dataclass(frozen=True, slots=True)
class OfUpload:
    """The content of an upload: is it what it says it is?"""

    key: Key
    claimed: str
    peer: bytes


Purpose = OfJob | OfSubmission | OfUpload


@dataclass(slots=True)
class PendingDigests:
    """Token -> purpose."""

    _purposes: dict[int, Purpose] = field(default_factory=dict)
    _last_token: int = 0

    def ask(self, purpose: Purpose) -> int:
        """A token for one more digest."""
        self._last_token += 1
        self._purposes[self._last_token] = purpose
        return self._last_token

    def take(self, token: int) -> Purpose | None:
        """What a digest that has come is for."""
        return self._purposes.pop(token, None)

    def discard_submissions(self, owner: ClientKey, job_id: str) -> list[ClientSent]:
        """Forget submissions of this id that are being compared; returns them."""
        dropped = {
            token: purpose.event
            for token, purpose in self._purposes.items()
            if isinstance(purpose, OfSubmission) and (purpose.owner, purpose.job_id) == (owner, job_id)
        }
        for token in dropped:
            del self._purposes[token]
        return list(dropped.values())
