"""Every transfer of activations goes through here: the place where codecs plug in.

A :class:`HeadCodec` says what the all-to-all carries; a :class:`Codec` does so for the hops of the ring, which are always raw. Both ends decode the same
bytes with the same function. **Whoever packs keeps nothing**: the rows that a rank has for itself go through the buffer with the others, and
come out of it decoded, so that all ranks work with the very same numbers, and which rank held a token does not show in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ...kernels.all_to_all_permute import pack_heads, unpack_heads
from .mesh import SequenceMesh
from .transport import Pending


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

    def rotate(self, value: Tensor, landing: Tensor) -> Rotation:
        """Start to send ``value`` to the next rank of the ring and to receive what fits ``landing`` from the previous one."""
        ring = self.mesh.ring
        after, before = ring.ranks[(ring.index + 1) % ring.size], ring.ranks[ring.index - 1]
        payload = self.codec.payload_for(landing)
        hop = self.mesh.transport.rotate(
            payload, self.codec.encode(value), to_rank=after, from_rank=before, group=ring.process_group
        )
        return Rotation(hop, self.codec, payload, landing)


class Rotation:
    """One hop of the ring under way."""

    def __init__(self, hop: Pending, codec: Codec, payload: Tensor, landing: Tensor) -> None:
        self._hop, self._codec, self._payload, self._landing = hop, codec, payload, landing

    def wait(self) -> Tensor:
        """The value that arrived."""
        self._hop.wait()
        return self._codec.decode(self._payload, self._landing)
