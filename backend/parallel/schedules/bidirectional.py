"""Bidirectional ring: the keys and values of half of the heads go round clockwise, those of the other half counter-clockwise.

Each direction of a full-duplex link between neighbours carries half of the bytes, so a ring that waits for its links takes half the time. Heads are
what is halved, not keys against values: a half that has arrived can be attended to at once, and its results never meet those of the other half.
"""

from __future__ import annotations

from torch import Tensor

from .call import RingCall
from .ring import Lane, attend_as_keys_pass


def attend_both_ways(call: RingCall) -> Tensor:
    """Prefetch depth 1 in both directions, which share one batch of transfers per hop. Memory: 2 chunks of keys and values, as one way.

    An odd head goes clockwise; a rank with one head has a one-way ring. Between two ranks both halves take the same link.
    """
    heads = call.k.shape[2]
    clockwise = heads - heads // 2
    lanes = [Lane(slice(0, clockwise), 1)]
    if clockwise < heads:
        lanes.append(Lane(slice(clockwise, heads), -1))
    return attend_as_keys_pass(call, lanes, depth=1)
