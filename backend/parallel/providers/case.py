"""What a local attention is asked for: the key under which a choice is kept, and tensors like those that the schedule hands over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..mesh import SequenceMesh
from ..partition import Partition
from .handed import Handed, buffers, handed_by


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """One kind of local attention. Equal on every rank of a sequence, also where ranks hold unequal shares."""

    dtype: torch.dtype
    batch: int
    heads: int
    """Of one rank: the model's, over the ulysses degree."""
    head_dim: int
    queries: int
    """Rounded up: see :func:`bucket`."""
    keys: int
    """That one call meets, rounded up: those of one ring chunk, or of all where they are gathered first."""
    scale: float
    needs_lse: bool
    """Whether partial results are merged."""
    from_exchange: bool
    """Whether q, k and v come as views of what a raw all-to-all delivered; without, as dense tensors."""
    schedule: str | None = None
    """Of the ring; ``None`` where it has one rank."""
    compacted: bool = False
    """Whether some rank copies its keys and values to drop padded ones."""

    @property
    def calls(self) -> tuple[Handed, ...]:
        """The kinds of calls that a kernel must be right for; the first is the one that is timed."""
        return handed_by(self.schedule, self.heads, from_exchange=self.from_exchange, compacted=self.compacted)

    @property
    def key(self) -> str:
        """A name for files and reports."""
        dtype = str(self.dtype).removeprefix("torch.")
        kind = [self.schedule or "no-ring", "lse" if self.needs_lse else "no-lse"]
        kind += ["exchanged" if self.from_exchange else "own", *["compacted"] * self.compacted]
        sizes = f"b{self.batch} h{self.heads} d{self.head_dim} q{self.queries} k{self.keys} s{self.scale:.6g}"
        return " ".join((dtype, sizes, *kind))


def bucket(tokens: int) -> int:
    """``tokens`` rounded up to two significant binary digits (..., 2048, 3072, 4096, 6144, ...), at least 16: at most half as many again."""
    if tokens <= 16:
        return 16
    step = 1 << ((tokens - 1).bit_length() - 2)
    return -(-tokens // step) * step


def case_of(q_BnHD: Tensor, scale: float, partition: Partition, mesh: SequenceMesh) -> AttentionCase:
    """The case of an attention whose query this rank holds as ``[B, n, H, D]``, before the Ulysses exchange.

    From what every rank knows alike: the largest share of queries and of keys, never this rank's own.
    """
    batch, _, heads, head_dim = q_BnHD.shape
    schedule = mesh.plan.schedule if mesh.ring.size > 1 else None
    queries, keys = lengths(partition, schedule)
    return AttentionCase(
        dtype=q_BnHD.dtype,
        batch=batch,
        heads=heads // mesh.ulysses.size,
        head_dim=head_dim,
        queries=bucket(queries),
        keys=bucket(keys),
        scale=scale,
        needs_lse=schedule not in (None, "allgather"),
        from_exchange=mesh.ulysses.size > 1 and mesh.plan.exact,  # other codecs decode into dense tensors
        schedule=schedule,
        compacted=sum(partition.chunk_lengths) < sum(partition.held),
    )


def lengths(partition: Partition, schedule: str | None) -> tuple[int, int]:
    """Queries and keys of the largest call on any rank, not rounded."""
    queries = max(sum(partition.peers_held(index)) for index in range(partition.ring))
    chunks = partition.chunk_lengths
    return queries, sum(chunks) if schedule == "allgather" else max(chunks)


def draw(case: AttentionCase, device: torch.device, call: Handed | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k and v, ``[B, H, tokens, D]``, with the strides of a call of the case: the first of them where none is named.

    The seed is fixed, and the generator a private one: nothing that a job draws changes.
    """
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = buffers(
        call or case.calls[0],
        batch=case.batch,
        heads=case.heads,
        head_dim=case.head_dim,
        queries=case.queries,
        keys=case.keys,
        like=torch.empty(0, device=device, dtype=case.dtype),
    )
    return q.normal_(generator=generator), k.normal_(generator=generator), v.normal_(generator=generator)
