"""Attentions over streams, to be split between ranks: what a rank holds, and what plain float64 attention over everything gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tutti.backend.parallel.partition import Partition, StreamSplit
from tutti.backend.parallel.plan import Plan

SCALE = 0.3


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """One attention. Its tensors are drawn on every rank from the same seed."""

    lengths: Mapping[str, int] = field(default_factory=lambda: {"image": 9})
    """Tokens by stream, cut into equal runs."""
    shares: Sequence[int] = ()
    """Instead: the tokens of each rank, of the only stream."""
    seen: str = ""
    """The streams that the attention sees; empty: all."""
    batch: int = 2
    heads: int = 6
    head_dim: int = 16
    dtype: str = "float32"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def partition(self, plan: Plan) -> Partition:
        """Of the call: what the attention sees of it is another question."""
        if self.shares:
            streams = {"image": StreamSplit.explicit(self.shares)}
            return Partition(ring=plan.ring, ulysses=plan.ulysses, streams=streams)
        return Partition.equal(self.lengths, ring=plan.ring, ulysses=plan.ulysses)

    def whole(self) -> dict[str, list[Tensor]]:
        """Queries, keys and values by stream, ``3 x [batch, tokens, heads, head_dim]``."""
        generator = torch.Generator().manual_seed(sum(self.shares) + sum(self.lengths.values()))
        lengths = {"image": sum(self.shares)} if self.shares else self.lengths
        return {
            name: [
                torch.randn(self.batch, length, self.heads, self.head_dim, generator=generator).to(self._dtype)
                for _ in range(3)
            ]
            for name, length in lengths.items()
        }

    def held(self, plan: Plan, rank: int) -> list[Tensor]:
        """Queries, keys and values of one rank, its streams one after the other, padding included."""
        seen = self.partition(plan).seen_by(self.seen).streams
        whole = self.whole()
        return [
            torch.cat([split.shard(whole[name][i], 1, rank) for name, split in seen.items()], dim=1) for i in range(3)
        ]

    def expected(self, plan: Plan, rank: int) -> Tensor:
        """Plain float64 attention of this rank's real queries to all real keys, ``[batch, queries, heads, head_dim]``."""
        seen = self.partition(plan).seen_by(self.seen).streams
        whole = self.whole()
        own = [whole[name][0][:, start : start + split.valid[rank]] for name, split, start in _starts(seen, rank)]
        k, v = (torch.cat([whole[name][i] for name in seen], dim=1) for i in (1, 2))
        q, k, v = (x.double().transpose(1, 2) for x in (torch.cat(own, dim=1), k, v))
        return ((q @ k.transpose(-1, -2) * SCALE).softmax(-1) @ v).transpose(1, 2)

    def real(self, out: Tensor, plan: Plan, rank: int) -> Tensor:
        """The rows of a rank's output that are no padding."""
        rows, start = [], 0
        for split in self.partition(plan).seen_by(self.seen).streams.values():
            rows.append(out[:, start : start + split.valid[rank]])
            start += split.held[rank]
        return torch.cat(rows, dim=1)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def _starts(streams: Mapping[str, StreamSplit], rank: int) -> list[tuple[str, StreamSplit, int]]:
    return [(name, split, sum(split.valid[:rank])) for name, split in streams.items()]
