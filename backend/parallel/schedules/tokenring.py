"""TokenRing (Wang et al. 2024, arXiv:2412.20501): keys and values stay, queries travel, partial results go straight back to their owners.

Queries take one direction of the links and results the other, each with half of the bytes that a ring of keys and values sends one way. It pays
where every pair of ranks has a full-duplex link of its own, and where there are fewer queries than keys.

With R ranks, rank j attends to the queries of rank ``j - s`` in step s. One batch of transfers goes with each step, so that every rank makes R
calls in one order and no transfer waits for a later one:

==========  ======================================================  ==================================
batch       sent by rank j                                          under way while j computes
==========  ======================================================  ==================================
0           queries of j, to j + 1                                  step 0: its own queries
s < R - 1   queries of j - s, to j + 1; the part of step s - 1,     step s
            to its owner j - s + 1
last        the parts of steps R - 2 and R - 1, to their owners     nothing: the exposed tail
==========  ======================================================  ==================================

The two parts of the last batch take two links: they leave when one would.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..exchange import Move, Parcel
from ..merge import Merger
from ..providers import Attended
from .call import RingCall


def attend_as_queries_pass(call: RingCall) -> Tensor:
    """Attend to every rank's queries as they come by, and merge what the others send back.

    A part travels as its kernel gave it: the output in the query's dtype, as in every other schedule, the log-sum-exp in float32. Memory: 2
    chunks of queries, the two latest parts on their way and two that come back.
    """
    size, exchange = call.ring.size, call.exchange
    k_BSHD, v_BSHD = call.real_keys()
    visiting = exchange.pack(call.q)
    returned: list[Parcel] = []
    unsent: list[Move] = []
    merged = Merger()
    for step in range(size):
        queries_BSHD = visiting.open()
        _merge(merged, returned)
        if step < size - 1:
            landing = queries_BSHD.new_empty(_with_length(call.q.shape, call.query_length(-step - 1)))
            visiting, *returned = exchange.hop([Move(parcel=visiting, shift=1, landing=landing), *unsent])
            unsent = []
        part = call.attend(queries_BSHD, k_BSHD, v_BSHD)
        if step == 0:
            merged.add(part)
        else:
            unsent += _homeward(call, part, step)
    _merge(merged, exchange.hop(unsent))
    return call.merged(merged)


def _homeward(call: RingCall, part: Attended | None, steps: int) -> list[Move]:
    """The transfer of a part to the owner of its queries, so many places back; and of one of ours, from as many places ahead.

    Where there is no query or no key there is no part, and both ends know it: nothing is sent.
    """
    B, S, H, D = call.q.shape
    precise = torch.promote_types(call.q.dtype, torch.float32)
    out_BHSD = call.q.new_empty(B, H, 0, D) if part is None else part.out
    lse_BHS = call.q.new_empty((B, H, 0), dtype=precise) if part is None else part.lse
    coming = S if call.key_length(steps) else 0
    return [
        Move(parcel=call.exchange.pack(value), shift=-steps, landing=value.new_empty((B, H, coming, *value.shape[3:])))
        for value in (out_BHSD, lse_BHS)
    ]


def _merge(merged: Merger, returned: list[Parcel]) -> None:
    """Merge what came back: outputs and their log-sum-exps in turn."""
    for out, lse in zip(returned[::2], returned[1::2], strict=True):
        part = Attended(out.open(), lse.open())
        merged.add(part if part.out.shape[2] else None)


def _with_length(shape: torch.Size, length: int) -> tuple[int, ...]:
    return (shape[0], length, *shape[2:])
