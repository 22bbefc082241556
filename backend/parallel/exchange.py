"""Every transfer of activations goes through here: the place where codecs plug in.

A :class:`HeadCodec` says what the all-to-all carries; a :class:`Codec` does so for the hops of the ring, which are always raw. Both ends decode the same
bytes with the same function. **Whoever packs keeps nothing**: the rows that a rank has for itself go through the buffer with the others, and
come out of it decoded, so that all ranks work with the very same numbers, and which rank held a token does not show in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...kernels.all_to_all_permute import pack_heads, unpack_heads
from .mesh import SequenceMesh
from .pending import Pending
from .transport import Message


class Codec(Protocol):
    """A hop's format. Dimension 0 of a value counts the rows that split lists speak of; a payload keeps it."""

    name: str
    exact: bool
    """Whether ``decode(encode(x))`` equals ``x`` bit for bit."""

    def encode(self, value: Tensor) -> Tensor:
        """What travels: contiguous, with the rows of ``value``."""

    def payload_for(self, landing: Tensor) -> Tensor:
        """A buffer for the payload of a value shaped like ``landing``; may be ``landing`` itself."""

    def decode(self, payload: Tensor, landing: Tensor) -> Tensor:
        """The value of ``payload``, in the shape and dtype of ``landing``; may be either of them."""


class HeadCodec(Protocol):
    """What the all-to-all carries. A row of it is one token of one part, of the same size whatever is in it.

    A codec sees whole tensors and, by their number, which way they go: q, k and v together on the way to "my heads", the output alone on
    the way back. It lives as long as the network is bound, and may keep what it likes of earlier calls.
    """

    name: str
    exact: bool
    """Whether ``unpack(pack(x))`` equals ``x`` bit for bit."""

    def pack(self, tensors: Sequence[Tensor], parts: int) -> Tensor:
        """T x ``[B, n, H, D]`` -> ``[parts, n, ...]``, contiguous, each part with H / parts heads."""

    def unpack(self, packed: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``[parts, n, ...]`` -> T x ``[B, n, H, D]``. ``like``: tensors of the same batch, head_dim and dtype (``[B, *, *, D]``)."""


class RawCodec:
    """Values travel as they are."""

    name = "raw"
    exact = True

    def encode(self, value: Tensor) -> Tensor:
        return value.contiguous()

    def payload_for(self, landing: Tensor) -> Tensor:
        return landing

    def decode(self, payload: Tensor, landing: Tensor) -> Tensor:
        return payload

    def pack(self, tensors: Sequence[Tensor], parts: int) -> Tensor:
        return pack_heads(tensors, parts)

    def unpack(self, packed: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Strided views of what arrived where there is one part."""
        return unpack_heads(self.decode(packed, packed))


class Exchange:
    """The transfers of one mesh, each through its codec."""

    def __init__(self, mesh: SequenceMesh, heads: HeadCodec) -> None:
        self.mesh = mesh
        self.heads = heads
        """Of the all-to-all."""
        self.codec: Codec = RawCodec()
        """Of the ring's hops."""

    def all_to_all(
        self,
        *tensors: Tensor,
        sent_splits: Sequence[int],
        received_splits: Sequence[int],
        parts: int,
        received_parts: int,
    ) -> tuple[Tensor, ...]:
        """Exchange tokens along the ulysses axis: ``[B, n, H, D]`` each, ``n * parts`` rows in, ``n' * received_parts`` rows out.

        What is sent is cut into ``parts`` by heads, token by token; what arrives has its heads in ``received_parts``. The split lists count
        rows for each rank of the axis.
        """
        packed = self.heads.pack(tensors, parts)
        arrived = packed.new_empty(received_parts, sum(received_splits) // received_parts, *packed.shape[2:])
        group = self.mesh.ulysses.process_group
        rows = arrived.flatten(0, 1), packed.flatten(0, 1)
        self.mesh.transport.all_to_all(*rows, received_splits, sent_splits, group)
        return self.heads.unpack(arrived, tensors)

    def pack(self, value: Tensor) -> Parcel:
        """Make ``value`` ready to travel along the ring."""
        return Parcel(self.codec, self.codec.encode(value), value)

    def hop(self, moves: Sequence[Move]) -> list[Parcel]:
        """Start one hop of the ring: all moves in one batch of transfers. Returns what comes in, in the order of the moves.

        Every rank of the ring makes the same shifts in the same order. A parcel that is still on its way here goes on when it has arrived.
        """
        ring = self.mesh.ring
        sent: list[Message] = []
        received: list[Message] = []
        for move in moves:
            sent.append(Message(move.parcel.payload, ring.ranks[(ring.index + move.shift) % ring.size]))
            payload = self.codec.payload_for(move.landing)
            received.append(Message(payload, ring.ranks[(ring.index - move.shift) % ring.size]))
        after = [move.parcel.pending for move in moves if move.parcel.pending is not None]
        pending = self.mesh.transport.hop(received, sent, ring.process_group, after)
        return [
            Parcel(self.codec, message.tensor, move.landing, pending)
            for message, move in zip(received, moves, strict=True)
        ]

    def gather(self, value: Tensor, landing: Tensor) -> Tensor:
        """The values of all ranks of the ring, of equal shape, one after the other along dimension 0 as in ``landing``."""
        payload = self.codec.payload_for(landing)
        self.mesh.transport.all_gather(payload, self.codec.encode(value), self.mesh.ring.process_group)
        return self.codec.decode(payload, landing)


class Parcel:
    """A value on its way along the ring: encoded once, by its owner, forwarded as it came, and decoded by whoever opens it."""

    def __init__(self, codec: Codec, payload: Tensor, value: Tensor, pending: Pending | None = None) -> None:
        self.payload = payload
        self.pending = pending
        """The hop that brings it; ``None`` when it is here."""
        self._codec = codec
        self._value = value
        self._is_open = pending is None

    def open(self) -> Tensor:
        """Wait for the value; its owner gets it as it was packed."""
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
        if not self._is_open:
            self._value = self._codec.decode(self.payload, self._value)
            self._is_open = True
        return self._value


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What every rank does with a parcel of its own in one hop: hand it on, and receive its counterpart."""

    parcel: Parcel
    shift: int
    """Places along the ring that it moves; what comes in comes from as many places behind."""
    landing: Tensor
    """Uninitialised, of the shape of what comes in."""
