"""All-gather: every rank fetches all keys and values at once, then attends to them in one go.

One collective and one kernel instead of a hop and a merge per rank: for short sequences, where what each call costs outweighs what it moves.
Nothing overlaps, and memory grows with the ring.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..merge import Merger
from .call import RingCall


def attend_after_gathering(call: RingCall) -> Tensor:
    """One all-gather, one local attention. Memory: ring size x the longest chunk of keys and values, and once more all real keys where
    chunks are of unequal length (they travel padded to the longest and are closed up on arrival).

    Rows are tokens, so that equal chunks lie one after the other and keys and values are views of what arrived.
    """
    lengths = call.partition.chunk_lengths
    longest = max(lengths)
    k_BSHD, v_BSHD = call.real_keys()
    B, own, H, D = k_BSHD.shape
    sent_L2BHD = k_BSHD.new_empty(longest, 2, B, H, D)
    for i, x_BSHD in enumerate((k_BSHD, v_BSHD)):
        sent_L2BHD[:own, i].copy_(x_BSHD.transpose(0, 1))
    sent_L2BHD[own:].zero_()  # never read, but a codec may look for the largest value
    arrived = call.exchange.gather(sent_L2BHD, k_BSHD.new_empty(len(lengths) * longest, 2, B, H, D))
    if any(length < longest for length in lengths):
        arrived = torch.cat(
            [rows[:length] for rows, length in zip(torch.split(arrived, longest), lengths, strict=True)]
        )
    keys_BSHD, values_BSHD = arrived.permute(1, 2, 0, 3, 4)
    part = Merger()
    part.add(call.attend(call.q, keys_BSHD, values_BSHD))
    return call.merged(part)
