"""What every client and every key has waiting in the daemon, and whether more may come."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from ..errors import QueueFull
from .clients import ClientKey
from .settings import MIB, Quotas


@dataclass(slots=True)
class Usage:
    """What is taken."""

    jobs: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Accounts:
    """Usage per client, per key, and of all together."""

    quotas: Quotas
    total: Usage = field(default_factory=Usage)
    _clients: defaultdict[ClientKey, Usage] = field(default_factory=lambda: defaultdict(Usage))
    _users: defaultdict[str, Usage] = field(default_factory=lambda: defaultdict(Usage))

    def check(self, owner: ClientKey, *, jobs: int, size_bytes: int) -> None:
        """Whether so much more may come.

        Raises:
            QueueFull: it may not, now.
        """
        q, user = self.quotas, owner[0]
        _check(self._clients.get(owner, Usage()), jobs, size_bytes, q.client_jobs, q.client_bytes, "your jobs")
        _check(self._users.get(user, Usage()), jobs, size_bytes, q.user_jobs, q.user_bytes, "the jobs under your key")
        if self.total.jobs + jobs > q.total_jobs or self.total.bytes + size_bytes > q.total_bytes:
            raise QueueFull("Try again later: the daemon's queue is full.")

    def take(self, owner: ClientKey, *, jobs: int = 0, size_bytes: int = 0) -> None:
        """Count something in."""
        for usage in (self._clients[owner], self._users[owner[0]], self.total):
            usage.jobs += jobs
            usage.bytes += size_bytes

    def give_back(self, owner: ClientKey, *, jobs: int = 0, size_bytes: int = 0) -> None:
        """Count it out again."""
        self.take(owner, jobs=-jobs, size_bytes=-size_bytes)
        if self._clients[owner] == Usage():
            del self._clients[owner]
        if self._users[owner[0]] == Usage():
            del self._users[owner[0]]

    def of(self, owner: ClientKey) -> Usage:
        """What a client has taken."""
        return self._clients.get(owner, Usage())


def _check(taken: Usage, jobs: int, size_bytes: int, most_jobs: int, most_bytes: int, whose: str) -> None:
    if taken.jobs + jobs > most_jobs:
        raise QueueFull(
            f"Wait until some of {whose} are done: {taken.jobs} are open or still being let go of, {most_jobs} are allowed."
        )
    if taken.bytes + size_bytes > most_bytes:
        raise QueueFull(
            f"Wait until some of {whose} are done: they hold {taken.bytes // MIB} of {most_bytes // MIB} MiB."
        )
