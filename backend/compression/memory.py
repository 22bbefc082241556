"""What residual state takes, before there is any: from the geometry of a network and the degrees of a plan. And what is kept where that is too much.

Of each layer, N being the tokens of a picture with its text, C = heads x head_dim channels, U and R the degrees, for the rank with most tokens:

* along the ring a rank keeps keys and values of all R owners, for its share of the heads: ``2 N C / U`` numbers;
* in the all-to-all it keeps, of what it sends to each of U - 1 peers and of what it gets from them, queries, keys, values and the output:
  ``8 (N / (R U)) (C / U) (U - 1)`` numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch

from .state import MatrixShape, StateForm

_WIDEST_BYTES: Final = torch.float32.itemsize
"""Of the numbers that are exchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What of a network's calls decides how much they exchange."""

    tokens: int
    """Of one picture or video, text included."""
    heads: int
    head_dim: int
    layers: int
    """Joint attentions of a call."""
    branches: int = 1
    """Of guidance, each with states of its own."""
    batch: int = 1


def state_bytes(geometry: Geometry, *, ring: int, ulysses: int, form: StateForm, dtype: torch.dtype) -> int:
    """Bytes on the rank that needs most, of the whole trajectory. ``ulysses`` divides the heads.

    Chunks are as equal as whole tokens let them be; what pads them up to equal lengths is counted, as it is exchanged.
    """
    share = -(-geometry.tokens // (ring * ulysses))
    heads = geometry.heads // ulysses

    def bytes_of(rows: int) -> int:
        shape = MatrixShape(rows=geometry.batch * rows, heads=heads, head_dim=geometry.head_dim)
        return form.bytes_of(shape, dtype)

    around = 2 * ring * bytes_of(share * ulysses) if ring > 1 else 0
    across = 2 * 4 * (ulysses - 1) * bytes_of(share)
    return geometry.layers * geometry.branches * (around + across)


def smallest(form: StateForm) -> StateForm:
    """The same with as little as a state can keep: its base in 8 bits, and no trend. Every codec works with it."""
    return replace(form, order=1, int8_base=True)


def form_instead(form: StateForm, taken_bytes: int, limit_bytes: int) -> StateForm | None:
    """What a trajectory keeps whose states of this form have come to take so much, which is over the limit; ``None``: nothing.

    The smallest form is tried unless it cannot fit whatever the numbers are: it takes at least 1 byte of the 4 that a base takes in the widest dtype,
    and of the 4 more of a trend. What it does take in a narrower one is left to be found out.
    """
    small = smallest(form)
    if small == form or taken_bytes * _bytes_a_number(small) > limit_bytes * _bytes_a_number(form):
        return None
    return small


def _bytes_a_number(form: StateForm) -> int:
    """In the widest dtype, without scales."""
    return (1 if form.int8_base else _WIDEST_BYTES) + (_WIDEST_BYTES if form.order == 2 else 0)
