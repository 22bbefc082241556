"""A transport around another one: what benchmarks that look at transfers, or slow them down, begin from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributed import ProcessGroup

from ..backend.parallel.pending import Pending
from ..backend.parallel.transport import Message, Transport


class WrappedTransport:
    """Passes everything on as it is."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.name, self.backend = inner.name, inner.backend

    @property
    def sent_bytes(self) -> int:
        """As counted within."""
        return self._inner.sent_bytes

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        """See :meth:`.Transport.hop`."""
        return self._inner.hop(received, sent, group, after)

    def all_to_all(
        self,
        received: Tensor,
        sent: Tensor,
        received_splits: Sequence[int],
        sent_splits: Sequence[int],
        group: ProcessGroup,
    ) -> None:
        """See :meth:`.Transport.all_to_all`."""
        self._inner.all_to_all(received, sent, received_splits, sent_splits, group)

    def all_gather(self, gathered: Tensor, own: Tensor, group: ProcessGroup) -> None:
        """See :meth:`.Transport.all_gather`."""
        self._inner.all_gather(gathered, own, group)

    def broadcast(self, tensor: Tensor, src: int, group: ProcessGroup) -> None:
        """See :meth:`.Transport.broadcast`."""
        self._inner.broadcast(tensor, src, group)
