"""A stand-in for the other ranks of a group, so that one device can run one rank's share.

Every transfer becomes a copy of this rank's own bytes into the buffer that the real one would fill: sizes, kernel launches and writes to memory are
those of a real rank, the numbers are not. **What comes out is no picture.** Time on the wire is missing too: :mod:`.links` models it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ...backend.parallel.mesh import SequenceMesh, build_meshes
from ...backend.parallel.pending import Pending
from ...backend.parallel.plan import Plan
from ...backend.parallel.transport import Message
from .links import Kind, Transfer


class _Arrived:
    """A hop that is over."""

    def wait(self) -> None:
        """Nothing is under way."""


class FakePeers:
    """See :class:`tutti.backend.parallel.transport.Transport`; each process group needs its size and this rank's place only."""

    name = "stand-in"
    backend = "none"

    def __init__(self) -> None:
        self.transfers: list[Transfer] = []

    @property
    def sent_bytes(self) -> int:
        """As a real transport counts."""
        return sum(transfer.sent_bytes for transfer in self.transfers)

    def all_to_all(
        self,
        received: Tensor,
        sent: Tensor,
        received_splits: Sequence[int],
        sent_splits: Sequence[int],
        group: ProcessGroup,
    ) -> None:
        _fill(received, sent)
        row_bytes = sent.nbytes // max(1, sent.shape[0])
        self._note("all-to-all", (sum(sent_splits) - sent_splits[group.rank()]) * row_bytes)

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        # What a rank receives in a hop is the counterpart of what it sends, message by message.
        for coming, going in zip(received, sent, strict=True):
            _fill(coming.tensor, going.tensor)
        self._note("hop", sum(message.tensor.nbytes for message in sent))
        return _Arrived()

    def all_gather(self, gathered: Tensor, own: Tensor, group: ProcessGroup) -> None:
        _fill(gathered, own)
        self._note("all-gather", own.nbytes * (group.size() - 1))

    def broadcast(self, tensor: Tensor, src: int, group: ProcessGroup) -> None:
        self._note("broadcast", tensor.nbytes * (group.size() - 1))

    def _note(self, kind: Kind, sent_bytes: int) -> None:
        self.transfers.append(Transfer(kind=kind, sent_bytes=sent_bytes))


def _fill(received: Tensor, sent: Tensor) -> None:
    """Overwrite ``received`` with the numbers of ``sent``, from the beginning again where they do not suffice."""
    target, source = received.view(-1), sent.reshape(-1)
    if not source.numel():
        target.zero_()
        return
    for start in range(0, target.numel(), source.numel()):
        part = target[start : start + source.numel()]
        part.copy_(source[: part.numel()])


def fake_mesh(plan: Plan, device: torch.device) -> tuple[SequenceMesh, FakePeers]:
    """The mesh of rank 0 of a group that is not there, and its stand-in peers."""
    peers = FakePeers()

    def group_of(ranks: list[int]) -> ProcessGroup:
        # Rank 0 is the first of every line that it is on. torch's stubs know only the form with a store.
        return ProcessGroup(0, len(ranks))  # type: ignore[call-arg]

    meshes = build_meshes(0, plan.world_size, device, peers, group_of)
    return replace(meshes[plan.split], plan=plan), peers
