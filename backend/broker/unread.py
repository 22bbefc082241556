"""Prepares that were aborted before every rank has answered them: they still lie in the sockets of ranks that are busy, or hang.

An Abort frees the group at once, so a client could have Prepare after Prepare queue behind a model that takes minutes to load. Each of
them counts in its quotas, as a job and with its bytes, until the ranks have read it.
"""

from __future__ import annotations

from .clients import ClientKey
from .quotas import Accounts


class UnreadPrepares:
    """Sequence number -> what its Prepare counts."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._held: dict[int, tuple[ClientKey, int]] = {}

    def hold(self, sequence: int, owner: ClientKey, size_bytes: int) -> None:
        """This Prepare was aborted, and not every rank has answered it."""
        self._accounts.take(owner, jobs=1, size_bytes=size_bytes)
        self._held[sequence] = (owner, size_bytes)

    def read_until(self, sequence: int) -> None:
        """Every rank has answered the Prepare of this number, and has read all that came before it."""
        for number in [number for number in self._held if number <= sequence]:
            owner, size_bytes = self._held.pop(number)
            self._accounts.give_back(owner, jobs=1, size_bytes=size_bytes)

    def clear(self) -> None:
        """The ranks are gone, and their sockets with them."""
        self.read_until(max(self._held, default=0))

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return sum(size_bytes for _, size_bytes in self._held.values())
