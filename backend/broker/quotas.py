"""What every client has waiting in the daemon, and whether more may come."""

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
    """Usage per client, and of all together."""

    quotas: Quotas
    total: Usage = field(default_factory=Usage)
    _clients: defaultdict[ClientKey, Usage] = field(default_factory=lambda: defaultdict(Usage))

    def check(self, owner: ClientKey, *, jobs: int, size_bytes: int) -> None:
        """Whether so much more may come.

        Raises:
            QueueFull: it may not, now.
        """
        mine, q = self._clients.get(owner, Usage()), self.quotas
        if mine.jobs + jobs > q.client_jobs:
            raise QueueFull(
                f"Wait until some of your jobs are done: {mine.jobs} are open, {q.client_jobs} are allowed."
            )
        if mine.bytes + size_bytes > q.client_bytes:
            raise QueueFull(
                f"Wait until some of your jobs are done: they hold {mine.bytes // MIB} of {q.client_bytes // MIB} MiB."
            )
        if self.total.jobs + jobs > q.total_jobs or self.total.bytes + size_bytes > q.total_bytes:
            raise QueueFull("Try again later: the daemon's queue is full.")

    def take(self, owner: ClientKey, *, jobs: int = 0, size_bytes: int = 0) -> None:
        """Count something in."""
        for usage in (self._clients[owner], self.total):
            usage.jobs += jobs
            usage.bytes += size_bytes

    def give_back(self, owner: ClientKey, *, jobs: int = 0, size_bytes: int = 0) -> None:
        """Count it out again."""
        self.take(owner, jobs=-jobs, size_bytes=-size_bytes)
        if self._clients[owner] == Usage():
            del self._clients[owner]

    def of(self, owner: ClientKey) -> Usage:
        """What a client has taken."""
        return self._clients.get(owner, Usage())
