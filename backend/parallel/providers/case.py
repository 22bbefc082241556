"""What a local attention is asked for: the key under which a choice is kept, and tensors like those that the ring hands over."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..mesh import SequenceMesh
from ..partition import Partition


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
    """Of one ring chunk, rounded up."""
    scale: float
    needs_lse: bool
    """Whether partial results are merged: a ring of more than one rank."""
    from_exchange: bool
    """Whether q, k and v come as views of what an all-to-all delivered; without, a rank's own tensors."""

    @property
    def key(self) -> str:
        """A name for files and reports."""
        dtype = str(self.dtype).removeprefix("torch.")
        kind = ("lse" if self.needs_lse else "no-lse", "exchanged" if self.from_exchange else "own")
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
    groups = range(partition.ring)
    batch, _, heads, head_dim = q_BnHD.shape
    return _case(
        q_BnHD.dtype,
        batch,
        heads // mesh.ulysses.size,
        head_dim,
        max(sum(partition.peers_held(index)) for index in groups),
        max(partition.chunk_lengths),
        scale,
        mesh.ring.size > 1,
        mesh.ulysses.size > 1,
    )


@functools.lru_cache(maxsize=256)
def _case(
    dtype: torch.dtype,
    batch: int,
    heads: int,
    head_dim: int,
    queries: int,
    keys: int,
    scale: float,
    needs_lse: bool,
    from_exchange: bool,
) -> AttentionCase:
    return AttentionCase(
        dtype=dtype,
        batch=batch,
        heads=heads,
        head_dim=head_dim,
        queries=bucket(queries),
        keys=bucket(keys),
        scale=scale,
        needs_lse=needs_lse,
        from_exchange=from_exchange,
    )


def draw(case: AttentionCase, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k and v, ``[B, H, tokens, D]``, with the strides that the ring hands over.

    The seed is fixed, and the generator a private one: nothing that a job draws changes.
    """
    generator = torch.Generator(device).manual_seed(0)
    B, H, D = case.batch, case.heads, case.head_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=case.dtype)

    if case.from_exchange:
        q = normal(case.queries, 3, B, H, D)[:, 0].permute(1, 2, 0, 3)
    else:
        q = normal(B, case.queries, H, D).transpose(1, 2)
    if case.from_exchange and not case.needs_lse:
        k, v = normal(case.keys, 3, B, H, D)[:, 1:].permute(1, 2, 3, 0, 4)
    else:
        k, v = normal(2, B, case.keys, H, D).transpose(2, 3)  # a ring chunk, or a rank's own
    return q, k, v
