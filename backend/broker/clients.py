"""Clients and their connections: who is who, and who is still alive.

A client is a (public key, client id) pair: one ComfyUI installation. It may hold several connections, because two ComfyUI processes
can share an installation. Jobs belong to a client and report to one connection; the lease is the connection's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ClientKey = tuple[str, str]
"""(public key, client id)"""
CONNECTIONS_REMEMBERED = 1024
"""Idle connections are forgotten beyond so many, the one silent longest first. It has to say hello again."""


@dataclass(slots=True)
class Connection:
    """One connection that said hello."""

    owner: ClientKey
    software: str
    seen_s: float
    """When it last sent anything."""


@dataclass(slots=True)
class Connections:
    """Routing identity -> connection."""

    lease_s: float
    _known: dict[bytes, Connection] = field(default_factory=dict)

    def hello(self, peer: bytes, owner: ClientKey, software: str, now_s: float) -> None:
        """A connection says whose it is."""
        self._known[peer] = Connection(owner, software, now_s)

    def owner(self, peer: bytes) -> ClientKey | None:
        """Whose connection it is; None before its hello."""
        connection = self._known.get(peer)
        return connection.owner if connection else None

    def seen(self, peer: bytes, now_s: float) -> None:
        """A sign of life."""
        if peer in self._known:
            self._known[peer].seen_s = now_s

    def vanished(self, peer: bytes, now_s: float) -> bool:
        """Whether the connection was silent for a whole lease."""
        connection = self._known.get(peer)
        return connection is None or now_s - connection.seen_s > self.lease_s

    def trim(self, needed: set[bytes]) -> None:
        """Forget idle connections beyond the limit, except the ``needed`` ones."""
        if len(self._known) <= CONNECTIONS_REMEMBERED:
            return
        idle = sorted((peer for peer in self._known if peer not in needed), key=lambda peer: self._known[peer].seen_s)
        for peer in idle[: len(self._known) - CONNECTIONS_REMEMBERED]:
            del self._known[peer]
