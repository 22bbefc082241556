"""Links of a stated speed, emulated on one machine: a transport that takes longer.

Emulated is time alone. The bytes go through the transport underneath, and so do the answers; :meth:`Pending.wait` then sleeps until the
moment at which a link of that speed would have delivered them. A message carries the time at which its sender's link is done with it, on the
clock that all processes of a machine share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..backend.parallel.pending import LaterHop, Pending
from ..backend.parallel.transport import Message, Transport
from .timeline import Span, Timeline
from .wrapped_transport import WrappedTransport


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedLinks:
    """What every rank is connected by."""

    bytes_per_s: float
    """Of each direction of a link, or of the port's way out."""
    latency_s: float = 0.0
    single_port: bool = False
    """All that a rank sends leaves through one port, one message after the other. Otherwise every pair of ranks has a full-duplex link of
    its own, a ring's neighbours included."""


class ThrottledTransport(WrappedTransport):
    """As slow as the links; only broadcasts pass as they are."""

    def __init__(self, inner: Transport, links: EmulatedLinks, timeline: Timeline) -> None:
        super().__init__(inner)
        self.name = f"throttled-{inner.name}"
        self._links = links
        self._timeline = timeline
        self._free_at_s: dict[int | None, float] = {}
        self._stamped_bytes = 0
        self._transfers = 0

    @property
    def sent_bytes(self) -> int:
        """Payload alone, without the times that travel along."""
        return self._inner.sent_bytes - self._stamped_bytes

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        """Start a hop; its times go into the timeline."""
        index, self._transfers = self._transfers, self._transfers + 1

        def start() -> Pending:
            started_s = time.monotonic()
            stamps = [
                Message(torch.tensor([self._leaves_at_s(message, started_s)], dtype=torch.float64), message.rank)
                for message in sent
            ]
            landings = [Message(torch.empty(1, dtype=torch.float64), message.rank) for message in received]
            self._stamped_bytes += 8 * len(stamps)
            hop = self._inner.hop([*received, *landings], [*sent, *stamps], group)
            times = [stamp.tensor for stamp in (*stamps, *landings)]
            return _Throttled(hop, times, started_s, index, self._timeline)

        return LaterHop(start, after) if after else start()

    def _leaves_at_s(self, message: Message, started_s: float) -> float:
        link = None if self._links.single_port else message.rank
        begins_s = max(started_s, self._free_at_s.get(link, 0.0))
        self._free_at_s[link] = begins_s + message.tensor.nbytes / self._links.bytes_per_s
        return self._free_at_s[link] + self._links.latency_s

    def all_gather(self, gathered: Tensor, own: Tensor, group: ProcessGroup) -> None:
        """As slow as ``ranks - 1`` hops of a one-way ring."""
        started_s = time.monotonic()
        self._inner.all_gather(gathered, own, group)
        hops = gathered.nbytes // max(1, own.nbytes) - 1
        sleep_until(started_s + hops * (own.nbytes / self._links.bytes_per_s + self._links.latency_s))

    def all_to_all(
        self,
        received: Tensor,
        sent: Tensor,
        received_splits: Sequence[int],
        sent_splits: Sequence[int],
        group: ProcessGroup,
    ) -> None:
        """As slow as one message of all that this rank sends to others; goes into the timeline."""
        index, self._transfers = self._transfers, self._transfers + 1
        before_bytes, started_s = self._inner.sent_bytes, time.monotonic()
        self._inner.all_to_all(received, sent, received_splits, sent_splits, group)
        sent_bytes = self._inner.sent_bytes - before_bytes
        sleep_until(started_s + self._links.latency_s + sent_bytes / self._links.bytes_per_s)
        self._timeline.transfers[index] = Span(started_s, time.monotonic())


class _Throttled:
    def __init__(
        self, hop: Pending, times_s: Sequence[Tensor], started_s: float, index: int, timeline: Timeline
    ) -> None:
        self._hop, self._times_s, self._started_s = hop, times_s, started_s
        self._index, self._timeline = index, timeline

    def wait(self) -> None:
        self._hop.wait()
        over_s = max(float(moment) for moment in self._times_s)
        sleep_until(over_s)
        self._timeline.transfers[self._index] = Span(self._started_s, over_s)


class SerialTransport(ThrottledTransport):
    """A prefetch that waits at once: what overlap is measured against."""

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        """Start a hop and wait for it."""
        hop = super().hop(received, sent, group, after)
        hop.wait()
        return hop


def sleep_until(moment_s: float) -> None:
    """Sleep until that time of the monotonic clock; not at all when it is past."""
    time.sleep(max(0.0, moment_s - time.monotonic()))
