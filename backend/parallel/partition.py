"""Which rank holds which tokens: per-stream lengths on every rank, and which of the keys are real.

A *stream* is one token sequence of a call (``"text"``, ``"image"``); a joint attention sees the streams of a rank one after the other, in the
order in which they are listed here. By default a stream is padded to a multiple of the group and cut into equal runs; explicit lists
may give every rank another share. Exactness never depends on the lengths: padded *keys* are dropped by a static index, padded
queries are dropped when the output is gathered.

Chunk ``c`` of a sequence belongs to rank ``c`` of the mesh (ring outer, ulysses inner), so the ranks of one ulysses group hold
neighbouring chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InternalError


@dataclass(frozen=True)
class StreamSplit:
    """One stream: how many tokens each rank holds, and how many of them (the first ones) are real."""

    held: tuple[int, ...]
    """Tokens in each rank's memory, padding included."""
    valid: tuple[int, ...]
    """Real tokens of each rank; they come first. Their sum is the length of the stream."""

    def __post_init__(self) -> None:
        if len(self.held) != len(self.valid) or not all(
            0 <= v <= h for h, v in zip(self.held, self.valid, strict=True)
        ):
            raise InternalError(
                f"A stream split needs 0 <= valid <= held on every rank: held {self.held}, valid {self.valid}."
            )

    @classmethod
    def equal(cls, length: int, world_size: int) -> StreamSplit:
        """Cut ``length`` tokens into equal runs, the last ones padded."""
        run = -(-length // world_size)
        return cls(
            held=(run,) * world_size, valid=tuple(max(0, min(run, length - rank * run)) for rank in range(world_size))
        )

    @classmethod
    def explicit(cls, lengths: Sequence[int]) -> StreamSplit:
        """Give rank ``i`` exactly ``lengths[i]`` tokens, without padding."""
        return cls(held=tuple(lengths), valid=tuple(lengths))

    @property
    def length(self) -> int:
        """Real tokens of the whole stream."""
        return sum(self.valid)

    def shard(self, tensor: Tensor, dim: int, rank: int) -> Tensor:
        """The tokens of ``rank``, zero-padded to what it holds: a view where nothing is padded. ``dim`` is the token dimension."""
        if tensor.shape[dim] != self.length:
            raise InternalError(
                f"A stream of {self.length} tokens was announced, but dimension {dim} has {tensor.shape[dim]}."
            )
        start, valid, held = sum(self.valid[:rank]), self.valid[rank], self.held[rank]
        own = tensor.narrow(dim, start, valid)
        if valid == held:
            return own
        shape = list(tensor.shape)
        shape[dim] = held - valid
        return torch.cat((own, tensor.new_zeros(shape)), dim)


@dataclass(frozen=True)
class Partition:
    """The split of every stream of one call over a ``ring x ulysses`` mesh; the same object on every rank."""

    ring: int
    ulysses: int
    streams: Mapping[str, StreamSplit]
    """In the order in which a joint attention concatenates them."""

    def __post_init__(self) -> None:
        for name, split in self.streams.items():
            if len(split.held) != self.world_size:
                raise InternalError(
                    f"Stream {name!r} is split for {len(split.held)} ranks, the mesh has {self.world_size}."
                )

    @classmethod
    def equal(cls, lengths: Mapping[str, int], *, ring: int, ulysses: int) -> Partition:
        """The default: every stream cut into equal runs."""
        splits = {name: StreamSplit.equal(length, ring * ulysses) for name, length in lengths.items()}
        return cls(ring=ring, ulysses=ulysses, streams=splits)

    @property
    def world_size(self) -> int:
        """Ranks over which the streams are split."""
        return self.ring * self.ulysses

    @cached_property
    def held(self) -> tuple[int, ...]:
        """Tokens of all streams together that each rank holds: the split list of the Ulysses exchange."""
        return tuple(map(sum, zip(*(split.held for split in self.streams.values()), strict=True)))

    def peers_held(self, ring_rank: int) -> tuple[int, ...]:
        """What each rank of one ulysses group holds, in group order."""
        return self.held[ring_rank * self.ulysses : (ring_rank + 1) * self.ulysses]

    @cached_property
    def chunk_lengths(self) -> tuple[int, ...]:
        """Real keys in each ring chunk (what one ulysses group holds together): the lengths of the ring's transfers."""
        per_rank = tuple(map(sum, zip(*(split.valid for split in self.streams.values()), strict=True)))
        return tuple(sum(per_rank[j * self.ulysses : (j + 1) * self.ulysses]) for j in range(self.ring))

    @cached_property
    def _parts(self) -> dict[str, Partition]:
        return {}

    def seen_by(self, streams: str) -> Partition:
        """What an attention to some of the streams works with. ``streams``: their names, joined by commas; empty: all of them.

        The order is that of :attr:`streams`. Kept, because it has indices on the device.
        """
        if not streams:
            return self
        if streams not in self._parts:
            names = streams.split(",")
            if unknown := sorted(set(names) - set(self.streams)):
                raise InternalError(f"An attention sees {', '.join(unknown)}, the call has {', '.join(self.streams)}.")
            chosen = {name: split for name, split in self.streams.items() if name in names}
            self._parts[streams] = Partition(ring=self.ring, ulysses=self.ulysses, streams=chosen)
        return self._parts[streams]

    @cached_property
    def _valid_indices(self) -> dict[tuple[int, torch.device], Tensor]:
        return {}

    def valid_keys(self, ring_rank: int, device: torch.device) -> Tensor | None:
        """Positions of the real keys within one ring chunk, int64 ``[keys]`` on ``device``; ``None`` when all of them are."""
        chunk = self.peers_held(ring_rank)
        if sum(chunk) == self.chunk_lengths[ring_rank]:
            return None
        cached = self._valid_indices.get((ring_rank, device))
        if cached is None:
            cached = torch.tensor(self._valid_positions(ring_rank), dtype=torch.int64, device=device)
            self._valid_indices[ring_rank, device] = cached
        return cached

    def _valid_positions(self, ring_rank: int) -> list[int]:
        positions: list[int] = []
        start = 0
        ranks = range(ring_rank * self.ulysses, (ring_rank + 1) * self.ulysses)
        for rank, split in itertools.product(ranks, self.streams.values()):
            positions.extend(range(start, start + split.valid[rank]))
            start += split.held[rank]
        return positions
