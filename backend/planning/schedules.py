"""Which schedule a ring should run, from what its links are: a cost model of one attention, without torch.

Per step of a ring of R ranks, with an attention of c seconds to one chunk and links of B bytes/s and a latency L::

    ring            (R - 1) max(c, KV / B + L) + c
    bidirectional   (R - 1) max(c, KV / 2B + L) + c                                      neighbours with full-duplex links, R >= 3
    tokenring       (R - 1) max(c, max(Q, O) / B + L) + c + O / B + L                    a full-duplex link between all pairs

KV, Q and O are the bytes of one rank's keys and values, of its queries, and of a partial result: the output, and its log-sum-exp in float32. The last
term of tokenring is its tail: the last result travels with nothing left to compute. Where all that a rank sends leaves through one port, a second
direction has no bandwidth of its own, and only the plain ring is considered.

The other schedules are never chosen: prefetch-2 and the all-gather differ from the ring in what this model leaves out (unequal ranks; the cost of
each call), and in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..errors import InternalError
from ..parallel.plan import SCHEDULES

WORTH_IT = 0.95
"""Another schedule than the default is chosen when it takes at most this share of the time: below that, a model of this kind is guessing."""


class Topology(Enum):
    """What every rank's links have to themselves."""

    SINGLE_PORT = "single port"
    """One way out for all that a rank sends: a switch port, one network card."""
    DUPLEX_NEIGHBOURS = "duplex neighbours"
    """A full-duplex link to each neighbour on the ring; other pairs share them."""
    DUPLEX_MESH = "duplex mesh"
    """A full-duplex link between all pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """The links of a ring, as measured or known."""

    topology: Topology
    bytes_per_s: float
    """Of one direction of one link."""
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if not (self.bytes_per_s > 0 and self.latency_s >= 0):
            raise InternalError(f"Links need a bandwidth above 0 and no negative latency: got {self}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RingWork:
    """One attention of a ring whose ranks hold equal shares."""

    ranks: int
    attend_s: float
    """Time of one rank's queries against one chunk of keys."""
    query_bytes: int
    """Of one rank."""
    key_value_bytes: int
    """Keys and values of one rank together."""
    result_bytes: int
    """A partial output of one rank's queries and its log-sum-exp."""

    def __post_init__(self) -> None:
        if self.ranks < 2 or min(self.attend_s, self.query_bytes, self.key_value_bytes, self.result_bytes) < 0:
            raise InternalError(f"A ring has at least 2 ranks, and no time or size below 0: got {self}.")


def predicted_s(schedule: str, work: RingWork, links: Links) -> float | None:
    """How long one attention takes; ``None`` where the schedule is not one that such links call for."""
    hops, c = work.ranks - 1, work.attend_s

    def sent_s(size_bytes: float) -> float:
        return size_bytes / links.bytes_per_s + links.latency_s

    if schedule == "ring":
        return hops * max(c, sent_s(work.key_value_bytes)) + c
    if schedule == "bidirectional" and links.topology is not Topology.SINGLE_PORT and work.ranks > 2:
        return hops * max(c, sent_s(work.key_value_bytes / 2)) + c
    if schedule == "tokenring" and links.topology is Topology.DUPLEX_MESH:
        return hops * max(c, sent_s(max(work.query_bytes, work.result_bytes))) + c + sent_s(work.result_bytes)
    return None


def choose_schedule(work: RingWork, links: Links | None) -> str:
    """The schedule for such work on such links; the default where nothing is known of them, and where nothing is clearly better."""
    default = SCHEDULES[0]
    if links is None:
        return default
    times = {name: time for name in SCHEDULES if (time := predicted_s(name, work, links)) is not None}
    best = min(times, key=lambda name: times[name])
    return best if times[best] <= WORTH_IT * times[default] else default
