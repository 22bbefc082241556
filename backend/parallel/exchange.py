"""Every transfer of activations goes through here: the place where codecs plug in.

A :class:`HeadCodec` says what the all-to-all carries; a :class:`HopCodec` does so for the hops of the ring. Both ends decode the same bytes with the same
function. In the all-to-all's rows **whoever packs keeps nothing**: what a rank has for itself it takes decoded as well, so that all ranks work with the very
same numbers, and which rank held a token does not show in the result. (Residual codecs do otherwise: :mod:`.residual`.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from ...kernels.all_to_all_permute import pack_heads, unpack_heads
from ..errors import InternalError
from . import ahead
from .mesh import SequenceMesh
from .pending import Pending
from .transport import Message

Value: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""What a hop carries: a tensor, or its slices along dimension 0."""


@dataclass(frozen=True, slots=True)
class Label:
    """Which of an attention's values it is."""

    origin: int
    """Place along the ring of the rank that it comes from."""
    lane: int = 0
    """Where several go round side by side."""


class HopCodec(Protocol):
    """A hop's format. Dimension 0 of a value counts the rows that split lists speak of."""

    name: str
    exact: bool
    """Whether what is decoded equals what was encoded bit for bit."""

    def encode(self, value: Tensor, label: Label) -> tuple[Tensor, Value]:
        """What travels, contiguous; and the value as its owner works with it."""

    def landing(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Where a value of this shape, with the dtype and device of ``like``, may land: of that shape and dtype, uninitialised."""

    def payload_for(self, landing: Tensor, label: Label) -> Tensor:
        """A buffer for the payload of a value shaped like ``landing``; may be ``landing`` itself."""

    def decode(self, payload: Tensor, landing: Tensor, label: Label) -> Value:
        """The value of ``payload``, in the shape and dtype of ``landing``; may be either of them."""

    def decoder(self, landing: Tensor, label: Label) -> Callable[[Tensor], Value] | None:
        """What :meth:`decode` would do to the payload, for another thread or stream to do as soon as it is here; ``None`` where it is no work.

        All bookkeeping is done in this call. Values of different labels are decoded in any order, and one label's before its next transfer.
        """


class HeadCodec(Protocol):
    """What the all-to-all carries. A row of it is one token of one part, of the same size whatever is in it.

    A codec sees whole tensors and, by their number, which way they go: q, k and v together on the way to "my heads", the output alone on
    the way back. It lives as long as the network is bound, and may keep what it likes of earlier calls.
    """

    name: str
    exact: bool
    """Whether ``unpack(pack(x))`` equals ``x`` bit for bit."""

    def all_to_all(self, tensors: Sequence[Tensor], splits: Splits, mesh: SequenceMesh) -> tuple[Tensor, ...]:
        """See :meth:`Exchange.all_to_all`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Which way an all-to-all goes. Tokens are rows; a row has some of the heads."""

    sent: Sequence[int]
    """Rows for each rank of the axis."""
    received: Sequence[int]
    """Rows from each rank of the axis."""
    parts: int
    """What is sent is cut into so many by heads, token by token: the axis' ranks, or 1."""
    received_parts: int
    """What arrives has its heads in so many: 1, or the axis' ranks."""


class RowCodec(ABC):
    """A row of the all-to-all is one token of one part, of the same size whatever is in it; a codec says what a row looks like."""

    @abstractmethod
    def pack(self, tensors: Sequence[Tensor], parts: int) -> Tensor:
        """T x ``[B, n, H, D]`` -> ``[parts, n, ...]``, contiguous, each part with H / parts heads."""

    @abstractmethod
    def unpack(self, packed: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``[parts, n, ...]`` -> T x ``[B, n, H, D]``. ``like``: tensors of the same batch, head_dim and dtype (``[B, *, *, D]``)."""

    def all_to_all(self, tensors: Sequence[Tensor], splits: Splits, mesh: SequenceMesh) -> tuple[Tensor, ...]:
        """One transfer for all tensors; the rows that a rank keeps go through it too."""
        packed = self.pack(tensors, splits.parts)
        arrived = packed.new_empty(
            splits.received_parts, sum(splits.received) // splits.received_parts, *packed.shape[2:]
        )
        rows = arrived.flatten(0, 1), packed.flatten(0, 1)
        mesh.transport.all_to_all(*rows, splits.received, splits.sent, mesh.ulysses.process_group)
        return self.unpack(arrived, tensors)


class RawCodec(RowCodec):
    """Values travel as they are."""

    name = "raw"
    exact = True

    def encode(self, value: Tensor, label: Label) -> tuple[Tensor, Value]:
        return value.contiguous(), value

    def landing(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        return like.new_empty(*shape)

    def payload_for(self, landing: Tensor, label: Label) -> Tensor:
        return landing

    def decode(self, payload: Tensor, landing: Tensor, label: Label) -> Tensor:
        return payload

    def decoder(self, landing: Tensor, label: Label) -> None:
        return None

    def pack(self, tensors: Sequence[Tensor], parts: int) -> Tensor:
        return pack_heads(tensors, parts)

    def unpack(self, packed: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Strided views of what arrived where there is one part."""
        return unpack_heads(self.decode(packed, packed, Label(0)))


class Exchange:
    """The transfers of one mesh, each through its codec."""

    def __init__(self, mesh: SequenceMesh, heads: HeadCodec, hops: HopCodec | None = None) -> None:
        """``hops``: raw, unless given."""
        self.mesh = mesh
        self.heads = heads
        self.hops: HopCodec = RawCodec() if hops is None else hops

    def all_to_all(self, *tensors: Tensor, splits: Splits) -> tuple[Tensor, ...]:
        """Exchange tokens along the ulysses axis: ``[B, n, H, D]`` each, ``n * parts`` rows out, ``n' * received_parts`` rows in."""
        return self.heads.all_to_all(tensors, splits, self.mesh)

    def pack(self, value: Tensor, lane: int = 0) -> Parcel:
        """Make ``value`` ready to travel along the ring."""
        label = Label(self.mesh.ring.index, lane)
        payload, known = self.hops.encode(value, label)
        return Parcel(self.hops, payload, label, known)

    def hop(self, moves: Sequence[Move]) -> list[Parcel]:
        """Start one hop of the ring: all moves in one batch of transfers. Returns what comes in, in the order of the moves.

        Every rank of the ring makes the same shifts in the same order. A parcel that is still on its way here goes on when it has arrived. What has to
        be decoded is opened ahead (:mod:`.ahead`): whoever gets a parcel opens it before the attention is over, or its state is not what others have.
        """
        ring = self.mesh.ring
        sent: list[Message] = []
        received: list[Message] = []
        labels: list[Label] = []
        for move in moves:
            sent.append(Message(move.parcel.payload, ring.ranks[(ring.index + move.shift) % ring.size]))
            labels.append(Label((move.parcel.label.origin - move.shift) % ring.size, move.parcel.label.lane))
            payload = self.hops.payload_for(move.landing, labels[-1])
            received.append(Message(payload, ring.ranks[(ring.index - move.shift) % ring.size]))
        after = [move.parcel.pending for move in moves if move.parcel.pending is not None]
        pending = self.mesh.transport.hop(received, sent, ring.process_group, after)
        coming = [
            Parcel(self.hops, message.tensor, label, move.landing, pending)
            for message, label, move in zip(received, labels, moves, strict=True)
        ]
        for parcel in coming:
            parcel.open_ahead()
        return coming

    def gather(self, value: Tensor, landing: Tensor) -> Tensor:
        """The values of all ranks of the ring, of equal shape, one after the other along dimension 0 as in ``landing``.

        Raises:
            InternalError: the codec of hops is not the raw one; others know a value by where it comes from.
        """
        if not isinstance(self.hops, RawCodec):
            raise InternalError("Values are gathered raw: no plan may gather them otherwise.")
        ring, label = self.mesh.ring, Label(self.mesh.ring.index)
        self.mesh.transport.all_gather(landing, value.contiguous(), ring.process_group)
        return self.hops.decode(landing, landing, label)


class Parcel:
    """A value on its way along the ring: encoded once, by its owner, forwarded as it came, and decoded by every rank that gets it."""

    def __init__(
        self, codec: HopCodec, payload: Tensor, label: Label, value: Value, pending: Pending | None = None
    ) -> None:
        """``value``: what it decodes to, or with a hop ``pending`` that brings it, an uninitialised tensor like that."""
        self.payload = payload
        self.label = label
        self.pending = pending
        """The hop that brings it; ``None`` when it is here."""
        self._codec = codec
        self._value = value
        self._is_open = pending is None
        self._ahead: Callable[[], Value] | None = None

    def open_ahead(self) -> None:
        """Begin to wait for it and to decode it, beside what this thread does until it opens it; nothing where decoding is no work."""
        pending, payload = self.pending, self.payload
        if pending is None or (decode := self._codec.decoder(self._place(), self.label)) is None:
            return

        def arrive() -> Value:
            pending.wait()
            return decode(payload)

        self._ahead = ahead.begin(arrive, payload.device)

    def open(self) -> Tensor:
        """Wait for the value, a tensor.

        Raises:
            InternalError: it comes in parts.
        """
        value = self._opened()
        if not isinstance(value, Tensor):
            raise InternalError("A value that comes in parts was asked for as one tensor.")
        return value

    def open_parts(self) -> tuple[Tensor, ...]:
        """Wait for the value: its slices along dimension 0."""
        value = self._opened()
        return tuple(value.unbind(0)) if isinstance(value, Tensor) else value

    def _opened(self) -> Value:
        if self._ahead is not None:
            self._value, self._is_open = self._ahead(), True
            self._ahead = self.pending = None
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
        if not self._is_open:
            self._value = self._codec.decode(self.payload, self._place(), self.label)
            self._is_open = True
        return self._value

    def _place(self) -> Tensor:
        if not isinstance(self._value, Tensor):
            raise InternalError("A parcel that is under way has a place to land.")
        return self._value


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What every rank does with a parcel of its own in one hop: hand it on, and receive its counterpart."""

    parcel: Parcel
    shift: int
    """Places along the ring that it moves; what comes in comes from as many places behind."""
    landing: Tensor
    """Uninitialised, of the shape of what comes in."""
