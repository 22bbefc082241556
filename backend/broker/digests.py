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
    counts: bool
    """Nobody else counts these bytes: a job or an upload that is there does so itself."""


class PendingDigests:
    """Token -> purpose. The bytes count in the quotas until their digest has come, whatever becomes of the job or the upload meanwhile.

    Once: as long as the job or the upload is there it counts them, from then on they count here. Bytes that wait to be hashed without
    counting could fill the daemon.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._pending: dict[int, Pending] = {}
        self._last_token = 0

    def ask(self, purpose: Purpose, owner: ClientKey, size_bytes: int) -> int:
        """A token for one more digest. Whoever holds the bytes of a job or an upload tells :meth:`outlive` when it lets go of them."""
        self._last_token += 1
        counts = isinstance(purpose, OfSubmission)
        if counts:
            self._accounts.take(owner, size_bytes=size_bytes)
        self._pending[self._last_token] = Pending(purpose, owner, size_bytes, counts)
        return self._last_token

    def outlive(self, token: int | None) -> None:
        """The job or the upload no longer counts these bytes. Nothing if their digest has come, or was never asked for."""
        if token is None or token not in self._pending:
            return
        pending = self._pending[token]
        if not pending.counts:
            self._accounts.take(pending.owner, size_bytes=pending.size_bytes)
            self._pending[token] = replace(pending, counts=True)

    def take(self, token: int) -> Purpose | None:
        """What a digest that has come is for."""
        pending = self._pending.pop(token, None)
        if pending is None:
            return None
        if pending.counts:
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
        """Of what counts here."""
        return sum(pending.size_bytes for pending in self._pending.values() if pending.counts)
