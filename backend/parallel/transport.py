"""How bytes travel between ranks: NCCL, gloo, or gloo with CUDA tensors staged through pinned host memory.

Nothing is reduced here, so everything travels as bytes: one code path for every dtype, fp8 included. Every call names its group, and
every rank of that group makes the same calls in the same order; NCCL collectives of one rank have one total order over all groups.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ..errors import BadPlan
from .pending import HopUnderWay, LaterHop, OpenHops, Pending


class Message(NamedTuple):
    """One tensor that goes to, or comes from, a rank."""

    tensor: Tensor
    rank: int
    """The other end, counted over all ranks."""


class Transport(Protocol):
    """Point-to-point and collective transfers of contiguous tensors; dimension 0 is what split lists count."""

    name: str
    backend: str
    """The process-group backend that groups for this transport are made of."""

    @property
    def sent_bytes(self) -> int:
        """What this rank has sent so far, each byte once for every other rank that got it: payload, without any protocol's own bytes."""

    def all_to_all(
        self,
        received: Tensor,
        sent: Tensor,
        received_splits: Sequence[int],
        sent_splits: Sequence[int],
        group: ProcessGroup,
    ) -> None:
        """Send ``sent_splits[i]`` rows to the group's i-th rank and receive ``received_splits[i]`` rows from it."""

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        """Start to send and to receive some messages, together, when the earlier hops ``after`` are over; returns at once.

        Messages between two ranks match in the order of their lists. Every rank of the group makes the same number of calls.
        """

    def all_gather(self, gathered: Tensor, own: Tensor, group: ProcessGroup) -> None:
        """Gather equal ``own`` tensors into ``gathered`` ``[ranks, ...]``."""

    def broadcast(self, tensor: Tensor, src: int, group: ProcessGroup) -> None:
        """Overwrite ``tensor`` with that of global rank ``src``."""


def _as_bytes(tensor: Tensor) -> Tensor:
    """``[rows, ...]`` as uint8 ``[rows, bytes]`` over the same memory; raises when the tensor is not contiguous."""
    return tensor.view(tensor.shape[0], math.prod(tensor.shape[1:])).view(torch.uint8)


def gather_bytes(gathered: Tensor, own: Tensor, group: ProcessGroup, *, wait: bool = True) -> dist.Work | None:
    """All-gather contiguous tensors of equal size into ``gathered`` ``[ranks, ...]``; without ``wait``, begin to."""
    # torch 2.13 gave the function this name and deprecated the old one.
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    work: dist.Work | None = gather(
        gathered.view(-1).view(torch.uint8), own.view(-1).view(torch.uint8), group=group, async_op=not wait
    )
    return work


def _on_wire(tensor: Tensor) -> Tensor:
    """A message's bytes. One without any travels as a single byte: a rank that left out a call would not be there when NCCL, in the
    first call of a group, connects all of its ranks."""
    return _as_bytes(tensor) if tensor.numel() else tensor.new_empty(1, dtype=torch.uint8)


def _operations(received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup) -> list[dist.P2POp]:
    """Receiving goes first. Gloo tells a sender over the connection on which its own data goes that it is ready to receive: said behind a payload, both
    ways of a full-duplex link would be used in turn, at half of its speed."""
    operations = [dist.P2POp(dist.irecv, tensor, rank, group) for tensor, rank in received]
    return operations + [dist.P2POp(dist.isend, tensor, rank, group) for tensor, rank in sent]


def _all_to_all_operations(
    landings: Sequence[Tensor], parts: Sequence[Tensor], group: ProcessGroup
) -> list[dist.P2POp]:
    """An all-to-all as messages, because gloo's own sends before it receives: ``[rows, bytes]`` from and to every rank of the group. What is
    empty does not travel; a rank's own is copied at once."""
    ranks, own = dist.get_process_group_ranks(group), dist.get_rank(group)
    landings[own].copy_(parts[own])
    # Everybody begins with the neighbour behind or before: no rank is everybody's first.
    places = [(own + distance) % len(ranks) for distance in range(1, len(ranks))]
    received = [Message(landings[place], ranks[place]) for place in reversed(places) if landings[place].numel()]
    sent = [Message(parts[place], ranks[place]) for place in places if parts[place].numel()]
    return _operations(received, sent, group)


class DirectTransport:
    """Tensors travel from where they are: NCCL for CUDA tensors, gloo for CPU tensors."""

    def __init__(self, backend: str) -> None:
        self.name = backend
        self.backend = backend
        self.sent_bytes = 0
        self.hops = OpenHops()

    def all_to_all(
        self,
        received: Tensor,
        sent: Tensor,
        received_splits: Sequence[int],
        sent_splits: Sequence[int],
        group: ProcessGroup,
    ) -> None:
        rows, landings = _as_bytes(sent), _as_bytes(received)
        self.sent_bytes += (sum(sent_splits) - sent_splits[dist.get_rank(group)]) * rows.shape[1]
        if self.backend == "gloo":
            operations = _all_to_all_operations(
                torch.split(landings, list(received_splits)), torch.split(rows, list(sent_splits)), group
            )
            if operations:  # counted as a hop: what is left of one that raised would meet a later one
                self.hops.begin(lambda: HopUnderWay(dist.batch_isend_irecv(operations))).wait()
        else:
            dist.all_to_all_single(landings, rows, list(received_splits), list(sent_splits), group=group)

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        operations = _operations(
            [Message(_on_wire(tensor), rank) for tensor, rank in received],
            [Message(_on_wire(tensor), rank) for tensor, rank in sent],
            group,
        )
        self.sent_bytes += sum(message.tensor.nbytes for message in sent)

        def start() -> Pending:
            return HopUnderWay(dist.batch_isend_irecv(operations))

        # The transfers of a NCCL group follow one another on its stream: what has been started before is over before.
        is_later = bool(after) and self.backend == "gloo"
        return self.hops.begin(lambda: LaterHop(start, after) if is_later else start())

    def all_gather(self, gathered: Tensor, own: Tensor, group: ProcessGroup) -> None:
        gather_bytes(gathered, own, group)
        self.sent_bytes += own.nbytes * (dist.get_world_size(group) - 1)

    def broadcast(self, tensor: Tensor, src: int, group: ProcessGroup) -> None:
        dist.broadcast(tensor.view(-1).view(torch.uint8), src=src, group=group)
        if dist.get_rank() == src:
            self.sent_bytes += tensor.nbytes * (dist.get_world_size(group) - 1)


class HostStagedTransport(DirectTransport):
    """CUDA tensors over gloo by way of pinned host memory, so that several ranks can share one GPU.

    For correctness runs, not for speed: every transfer waits for the GPU.
    """

    def __init__(self) -> None:
        super().__init__("gloo")
        self.name = "gloo-host-staged"

    @staticmethod
    def _empty_on_host(like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=torch.cuda.is_available())

    def _on_host(self, tensor: Tensor) -> Tensor:
        return self._empty_on_host(tensor).copy_(tensor)

    def all_to_all(
        self,
        received: Tensor,
        sent: Tensor,
        received_splits: Sequence[int],
        sent_splits: Sequence[int],
        group: ProcessGroup,
    ) -> None:
        landing = self._empty_on_host(received)
        super().all_to_all(landing, self._on_host(sent), received_splits, sent_splits, group)
        received.copy_(landing)

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        for earlier in after:
            earlier.wait()
        landings = [Message(self._empty_on_host(tensor), rank) for tensor, rank in received]
        staged = [Message(self._on_host(tensor), rank) for tensor, rank in sent]
        hop = super().hop(landings, staged, group)
        return _Landing(hop, [(to.tensor, landing.tensor) for to, landing in zip(received, landings, strict=True)])

    def all_gather(self, gathered: Tensor, own: Tensor, group: ProcessGroup) -> None:
        landing = self._empty_on_host(gathered)
        super().all_gather(landing, self._on_host(own), group)
        gathered.copy_(landing)

    def broadcast(self, tensor: Tensor, src: int, group: ProcessGroup) -> None:
        staged = self._on_host(tensor)
        super().broadcast(staged, src, group)
        tensor.copy_(staged)


class _Landing:
    """A staged hop: the received bytes still have to go from host memory to the device."""

    def __init__(self, hop: Pending, copies: list[tuple[Tensor, Tensor]]) -> None:
        self._hop, self._copies = hop, copies
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:  # to the last byte: a second thread that waits must not go on beside a copy
            self._hop.wait()
            while self._copies:
                received, landing = self._copies.pop()
                received.copy_(landing)


def count_open_hops(transport: Transport) -> int:
    """Hops that this rank has started, or promised, and not waited for to their end; 0 for stand-ins, which keep no count.

    On NCCL a wait returns before the transfer is over: what it counts is who would still have to wait.
    """
    return transport.hops.count if isinstance(transport, DirectTransport) else 0


TRANSPORTS = ("nccl", "gloo", "gloo-host-staged")


def choose_transport(requested: str | None, device: torch.device, world_size: int) -> Transport:
    """The transport for ranks on ``device``: gloo on CPU, NCCL on CUDA, staged when more ranks than GPUs share this host.

    Raises :class:`BadPlan` for an unknown name, and for one that cannot carry tensors of ``device``.
    """
    name = requested or _automatic(device, world_size)
    if name not in TRANSPORTS:
        raise BadPlan(f"Choose a transport of {', '.join(TRANSPORTS)}: {name[:40]!r} is none of them.")
    if (name == "nccl") != (device.type == "cuda") and name != "gloo-host-staged":
        raise BadPlan(f"Choose another transport: {name} carries no {device.type} tensors.")
    return HostStagedTransport() if name == "gloo-host-staged" else DirectTransport(name)


def _automatic(device: torch.device, world_size: int) -> str:
    if device.type != "cuda":
        return "gloo"
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return "nccl" if ranks_here <= torch.cuda.device_count() else "gloo-host-staged"
