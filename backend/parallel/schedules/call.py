"""What every schedule works on: one attention of one ring, seen from this rank.

Shape letters: B batch, S queries that this rank's ulysses group holds (padding included), H heads of this rank, D head_dim. A *chunk* is what one
ulysses group holds; its keys are counted without padding, by the static lengths of the partition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..exchange import Exchange
from ..merge import Merger
from ..mesh import Axis
from ..partition import Partition
from ..providers import Attended, AttentionProvider


@dataclass(frozen=True, slots=True, kw_only=True)
class RingCall:
    """One attention: this rank's queries, keys and values, and how to reach those of the others."""

    q: Tensor
    """``[B, S, H, D]``, as are the keys and values: any strides with a dense last dimension."""
    k: Tensor
    v: Tensor
    scale: float
    partition: Partition
    exchange: Exchange
    provider: AttentionProvider

    @property
    def ring(self) -> Axis:
        """The ranks that take turns."""
        return self.exchange.mesh.ring

    def key_length(self, places: int) -> int:
        """Real keys in the chunk of the rank so many places further along the ring (negative: back)."""
        return self.partition.chunk_lengths[(self.ring.index + places) % self.ring.size]

    def query_length(self, places: int) -> int:
        """Queries in the chunk of the rank so many places further along the ring, padding included."""
        return sum(self.partition.peers_held((self.ring.index + places) % self.ring.size))

    def real_keys(self) -> tuple[Tensor, Tensor]:
        """This rank's keys and values without padding, ``2 x [B, keys, H, D]``: views where nothing is padded."""
        valid = self.partition.valid_keys(self.ring.index, self.k.device)
        if valid is None:
            return self.k, self.v
        return self.k.index_select(1, valid), self.v.index_select(1, valid)

    def attend(self, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Attended | None:
        """Some queries to some keys; ``None`` without a query or without a key: kernels want one of each."""
        if not q_BSHD.shape[1] or not k_BSHD.shape[1]:
            return None
        return self.provider(q_BSHD.transpose(1, 2), k_BSHD.transpose(1, 2), v_BSHD.transpose(1, 2), self.scale)

    def merged(self, parts: Merger, heads: slice = slice(None)) -> Tensor:
        """What the parts give together, ``[B, S, H, D]`` in the query's dtype; zeros where there was nothing to attend to."""
        q_BHSD = self.q[:, :, heads].transpose(1, 2)
        return parts.result(q_BHSD.dtype, q_BHSD.shape, q_BHSD.device).transpose(1, 2)


Schedule: TypeAlias = Callable[[RingCall], Tensor]
"""Exact attention to the keys of the whole ring: ``[B, S, H, D]`` in the query's dtype. Every rank of the ring calls the same one."""


def pack_keys(k_BSHD: Tensor, v_BSHD: Tensor, valid: Tensor | None) -> Tensor:
    """The real keys and values of a chunk in one buffer ``[2, B, keys, H, D]``. ``valid``: see :meth:`Partition.valid_keys`."""
    if valid is None:
        return torch.stack((k_BSHD, v_BSHD))
    B, _, H, D = k_BSHD.shape
    packed = k_BSHD.new_empty(2, B, len(valid), H, D)
    for i, x in enumerate((k_BSHD, v_BSHD)):
        torch.index_select(x, 1, valid, out=packed[i])
    return packed
