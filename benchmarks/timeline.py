"""When transfers and attentions ran: the record that shows what overlaps, and an attention that takes a stated time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..backend.parallel.providers import Attended, AttentionProvider


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when something ran, on the monotonic clock."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s

    def overlap_s(self, other: Span) -> float:
        """How long both ran at once."""
        return max(0.0, min(self.end_s, other.end_s) - max(self.start_s, other.start_s))


@dataclass(slots=True)
class Timeline:
    """One rank's part of a ring loop."""

    transfers: dict[int, Span] = field(default_factory=dict)
    """By number, counted from 0: from when this rank started it until all of it was there."""
    attentions: list[Span] = field(default_factory=list)

    def hidden(self) -> list[float]:
        """For each chunk but the last: the share of the hop started before it, or of its attention if that is shorter, in which both ran."""
        shares = []
        for index, attention in enumerate(self.attentions[:-1]):
            hop = self.transfers[index]
            shares.append(hop.overlap_s(attention) / min(hop.length_s, attention.length_s))
        return shares


class PacedAttention:
    """A real attention to a few tokens that lasts as long as one to many: it sleeps until its time is over.

    A stand-in: it takes no processor meanwhile, as a GPU's attention takes none from its links, so that four ranks can share two cores.
    """

    exact = True

    def __init__(self, inner: AttentionProvider, score_s: float, timeline: Timeline) -> None:
        self._inner = inner
        self._score_s = score_s
        """Per query, key and head."""
        self._timeline = timeline
        self.name = f"paced-{inner.name}"

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        """What the attention within takes."""
        return self._inner.takes(device, dtype, head_dim)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        """Attend, and let the time pass."""
        start_s = time.monotonic()
        attended = self._inner(q, k, v, scale)
        scores = q.shape[1] * q.shape[2] * k.shape[2]
        time.sleep(max(0.0, start_s + scores * self._score_s - time.monotonic()))
        self._timeline.attentions.append(Span(start_s, time.monotonic()))
        return attended
