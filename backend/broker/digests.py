"""Digests that are being computed elsewhere, and what each one is for.

Hashing 5 MiB takes as long as sending it, so no job waits for it: a digest is only needed when an id comes a second time. Whoever
computes them answers in the order in which they were asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .clients import ClientKey
from .events import ClientSent
from .quotas import Accounts
from .uploads import Key, StoredUpload


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
    upload: StoredUpload


Purpose = OfJob | OfSubmission | OfUpload


@dataclass(frozen=True, slots=True)
class Pending:
    """One digest that has been asked for."""

    purpose: Purpose | None
    """None: nobody wants it any more."""
    owner: ClientKey
    size_bytes: int
    """What the thread that computes it holds on to."""


class PendingDigests:
    """Token -> purpose. The bytes count in the quotas until their digest has come, whatever becomes of the job or the upload meanwhile.

    For that moment they may count twice; bytes that wait to be hashed without counting could fill the daemon.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._pending: dict[int, Pending] = {}
        self._last_token = 0

    def ask(self, purpose: Purpose, owner: ClientKey, size_bytes: int) -> int:
        """A token for one more digest."""
        self._last_token += 1
        self._accounts.take(owner, size_bytes=size_bytes)
        self._pending[self._last_token] = Pending(purpose, owner, size_bytes)
        return self._last_token

    def take(self, token: int) -> Purpose | None:
        """What a digest that has come is for."""
        pending = self._pending.pop(token, None)
        if pending is None:
            return None
        self._accounts.give_back(pending.owner, size_bytes=pending.size_bytes)
        return pending.purpose

    def discard_submissions(self, owner: ClientKey, job_id: str) -> None:
        """Forget what submissions of this id that are being compared are for."""
        for token, pending in self._pending.items():
            purpose = pending.purpose
            if isinstance(purpose, OfSubmission) and (purpose.owner, purpose.job_id) == (owner, job_id):
                self._pending[token] = replace(pending, purpose=None)

    @property
    def size_bytes(self) -> int:
        """Of everything that waits to be hashed."""
        return sum(pending.size_bytes for pending in self._pending.values())
