"""How the tensors of a local attention lie in memory, by the schedule that hands them over: a kernel may be wrong for some strides only."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import Tensor

Layout: TypeAlias = Literal["dense", "exchanged", "gathered"]
"""``dense``: ``[B, tokens, H, D]``, a rank's own or a chunk that travels. ``exchanged``: a view of what a raw all-to-all delivered, ``[tokens, 3, B, H, D]``.
``gathered``: keys and values as views of ``[tokens, 2, B, H, D]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """One kind of call of a kernel."""

    queries: Layout
    keys: Layout
    """And values."""
    first_head: int
    """Queries are those of some of their buffer's heads; keys and values have a buffer of just these."""
    heads: int


def handed_by(schedule: str | None, heads: int, *, from_exchange: bool, compacted: bool) -> tuple[Handed, ...]:
    """Every kind of call that a schedule makes on any rank, the commonest first. ``None``: a ring of one rank, which has no schedule.

    Restates what the modules of :mod:`..schedules` do, which import this package; a test compares the two.
    """
    lying: Layout = "exchanged" if from_exchange else "dense"
    whole = Handed(queries=lying, keys="dense", first_head=0, heads=heads)
    if schedule is None:
        return (replace(whole, keys="dense" if compacted else lying),)
    if schedule == "allgather":
        return (replace(whole, keys="gathered"),)
    if schedule == "bidirectional":
        lanes = (
            replace(whole, heads=heads - heads // 2),
            replace(whole, first_head=heads - heads // 2, heads=heads // 2),
        )
        return tuple(lane for lane in lanes if lane.heads)
    if (
        schedule == "tokenring"
    ):  # queries of others come dense; keys stay as they lie, but for ranks that drop padded ones
        kinds = itertools.product(("dense", lying), (lying, "dense") if compacted else (lying,))
        return tuple(dict.fromkeys(replace(whole, queries=queries, keys=keys) for queries, keys in kinds))
    return (whole,)


def buffers(
    handed: Handed, *, batch: int, heads: int, head_dim: int, queries: int, keys: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised q, k and v, ``[B, H, tokens, D]`` with the strides of such a call; ``heads``: of a rank. Device and dtype of ``like``."""
    B, D = batch, head_dim
    if handed.queries == "exchanged":
        q = like.new_empty(queries, 3, B, heads, D)[:, 0].permute(1, 2, 0, 3)
    else:
        q = like.new_empty(B, queries, heads, D).transpose(1, 2)
    q = q[:, handed.first_head : handed.first_head + handed.heads]
    if handed.keys == "exchanged":
        k, v = like.new_empty(keys, 3, B, handed.heads, D)[:, 1:].permute(1, 2, 3, 0, 4)
    elif handed.keys == "gathered":
        k, v = like.new_empty(keys, 2, B, handed.heads, D).permute(1, 2, 3, 0, 4)
    else:
        k, v = like.new_empty(2, B, keys, handed.heads, D).transpose(2, 3)
    return q, k, v
