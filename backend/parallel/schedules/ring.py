"""Ring attention (Liu et al. 2023, arXiv:2310.01889): queries stay, keys and values travel, partial results merge by log-sum-exp.

Keys and values share one transfer per hop. Padded keys are dropped once, by the rank that owns them, before they travel: no hop carries
them and no kernel sees a mask.

``prefetch depth`` is how many hops may be under way or finished ahead of the chunk that is attended to. A chunk is forwarded as it came, so that
hop ``i + 2`` cannot start before hop ``i + 1`` has arrived; with depth 2 it starts at that moment, in the middle of an attention, instead of
after it. That helps where chunks are of unequal length or ranks of unequal speed; where all are equal it only costs memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..exchange import Move, Parcel
from ..merge import Merger
from .call import RingCall, pack_keys


@dataclass(frozen=True, slots=True)
class Lane:
    """Some heads, and the way that their keys and values go."""

    heads: slice
    shift: int
    """Places along the ring per hop: 1 is clockwise, -1 the other way."""


def ring_attention(call: RingCall) -> Tensor:
    """Prefetch depth 1, a double buffer: the next hop is under way while a chunk is attended to. Memory: 2 chunks of keys and values."""
    return attend_as_keys_pass(call, (Lane(slice(0, call.k.shape[2]), 1),), depth=1)


def attend_two_ahead(call: RingCall) -> Tensor:
    """Prefetch depth 2. Memory: 3 chunks of keys and values, whatever the size of the ring."""
    return attend_as_keys_pass(call, (Lane(slice(0, call.k.shape[2]), 1),), depth=2)


def attend_as_keys_pass(call: RingCall, lanes: Sequence[Lane], *, depth: int) -> Tensor:
    """Attend to every chunk as it comes by; ``[B, S, H, D]``. At most ``depth + 1`` chunks per lane are in memory.

    ``ring size - 1`` hops on every rank, and one batch of transfers per hop: all ranks make the same calls in the same order.
    """
    size = call.ring.size
    farthest = [_own_parcel(call, lane, number) for number, lane in enumerate(lanes)]
    ahead = deque([farthest])
    parts = [Merger() for _ in lanes]
    started = 0
    for step in range(size):
        chunks = [parcel.open_parts() for parcel in ahead.popleft()]
        while started < min(step + depth, size - 1):
            started += 1
            farthest = call.exchange.hop(
                [_onward(call, lane, parcel, started) for lane, parcel in zip(lanes, farthest, strict=True)]
            )
            ahead.append(farthest)
        for lane, part, (k_BSHD, v_BSHD) in zip(lanes, parts, chunks, strict=True):
            part.add(call.attend(call.q[:, :, lane.heads], k_BSHD, v_BSHD))
    merged = [call.merged(part, lane.heads) for lane, part in zip(lanes, parts, strict=True)]
    return merged[0] if len(merged) == 1 else torch.cat(merged, dim=2)


def _own_parcel(call: RingCall, lane: Lane, number: int) -> Parcel:
    valid = call.partition.valid_keys(call.ring.index, call.k.device)
    return call.exchange.pack(pack_keys(call.k[:, :, lane.heads], call.v[:, :, lane.heads], valid), number)


def _onward(call: RingCall, lane: Lane, parcel: Parcel, hop: int) -> Move:
    B, _, _, D = call.k.shape
    heads = lane.heads.stop - lane.heads.start
    landing = call.exchange.hops.landing(call.k, (2, B, call.key_length(-lane.shift * hop), heads, D))
    return Move(parcel=parcel, shift=lane.shift, landing=landing)
