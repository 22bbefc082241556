"""A transport that counts what goes through it, and loses a transfer on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup
from tutti.backend.parallel.pending import Pending
from tutti.backend.parallel.transport import Message, Transport
from tutti.benchmarks.wrapped_transport import WrappedTransport


class WatchedTransport(WrappedTransport):
    """Counts calls and bytes by kind. ``lost`` is the ring transfer (a hop or an all-gather, counted from 0) whose data never arrive."""

    def __init__(self, inner: Transport, lost: int | None = None) -> None:
        super().__init__(inner)
        self._lost = lost
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def _call(self, kind: str, call: Callable[..., Any], *arguments: Any) -> Any:
        before = self._inner.sent_bytes
        result = call(*arguments)
        self.calls[kind] += 1
        self.bytes[kind] += self._inner.sent_bytes - before
        return result

    def all_to_all(self, *arguments: Any) -> None:  # type: ignore[override]
        self._call("all_to_all", self._inner.all_to_all, *arguments)

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        is_lost = self.calls["hop"] == self._lost
        pending: Pending = self._call("hop", self._inner.hop, received, sent, group, after)
        return _Lost(pending, received) if is_lost else pending

    def all_gather(self, gathered: Tensor, own: Tensor, group: ProcessGroup) -> None:
        is_lost = self.calls["all_gather"] == self._lost
        self._call("all_gather", self._inner.all_gather, gathered, own, group)
        if is_lost:
            gathered.zero_()

    def broadcast(self, tensor: Tensor, src: int, group: ProcessGroup) -> None:
        self._call("broadcast", self._inner.broadcast, tensor, src, group)


class _Lost:
    def __init__(self, hop: Pending, received: Sequence[Message]) -> None:
        self._hop, self._received = hop, list(received)

    def wait(self) -> None:
        self._hop.wait()
        while self._received:
            self._received.pop().tensor.zero_()
