"""Every transfer of activations goes through here: the place where a codec plugs in.

A :class:`Codec` turns a tensor into what travels and back. Both ends decode the same bytes with the same function, and a sender that
keeps a value keeps the decoded one, so that both ends hold identical bits, whatever the codec loses. Only ``raw`` exists so far;
it is exact and copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .mesh import SequenceMesh
from .transport import Pending


class Codec(Protocol):
    """A transfer's format. Dimension 0 of a value counts the rows that split lists speak of; a payload keeps it."""

    name: str
    exact: bool
    """Whether ``decode(encode(x))`` equals ``x`` bit for bit."""

    def encode(self, value: Tensor) -> Tensor:
        """What travels: contiguous, with the rows of ``value``."""

    def payload_for(self, landing: Tensor) -> Tensor:
        """A buffer for the payload of a value shaped like ``landing``; may be ``landing`` itself."""

    def decode(self, payload: Tensor, landing: Tensor) -> Tensor:
        """The value of ``payload``, in the shape and dtype of ``landing``; may be either of them."""


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


class Exchange:
    """The transfers of one mesh, each through the codec."""

    def __init__(self, mesh: SequenceMesh, codec: Codec) -> None:
        self.mesh = mesh
        self.codec = codec

    def all_to_all(
        self, value: Tensor, landing: Tensor, *, received_splits: Sequence[int], sent_splits: Sequence[int]
    ) -> Tensor:
        """Exchange rows along the ulysses axis. ``landing`` is an uninitialised tensor of the shape of what arrives."""
        payload = self.codec.payload_for(landing)
        group = self.mesh.ulysses.process_group
        self.mesh.transport.all_to_all(payload, self.codec.encode(value), received_splits, sent_splits, group)
        return self.codec.decode(payload, landing)

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
