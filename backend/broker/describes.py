"""Describes that are being looked up: a thread of their own answers them in order, and each may list a whole disk."""

from __future__ import annotations

from collections import Counter

from ..errors import QueueFull
from .settings import Quotas


class PendingDescribes:
    """How many have not been answered, by connection and by key."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._by_connection: Counter[bytes] = Counter()
        self._by_user: Counter[str] = Counter()

    def take(self, peer: bytes, user: str) -> None:
        """Count one more.

        Raises:
            QueueFull: so many are being looked up for this connection, or this key, that it has to wait.
        """
        for pending, most in (
            (self._by_connection[peer], self._quotas.connection_describes),
            (self._by_user[user], self._quotas.user_describes),
        ):
            if pending >= most:
                raise QueueFull(
                    f"Wait for the answers to what was asked before: {pending} descriptions are being looked up, {most} are allowed."
                )
        self._by_connection[peer] += 1
        self._by_user[user] += 1

    def give_back(self, peer: bytes, user: str) -> None:
        """One was answered."""
        self._by_connection[peer] -= 1
        self._by_user[user] -= 1
        # Connections come and go for weeks: what is zero is not kept.
        self._by_connection += Counter()
        self._by_user += Counter()

    def __len__(self) -> int:
        return self._by_user.total()
