"""Schedules: the orders in which the ranks of a ring meet one another's keys. All are exact; a plan names the one to run.

They differ in which links they keep busy, in memory, and in what is left exposed at the end (``docs/adr/0018``). Each is a function of one
:class:`~.call.RingCall`, and all of their transfers go through :class:`~..exchange.Exchange`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..merge import Merger
from .allgather import attend_after_gathering
from .bidirectional import attend_both_ways
from .call import RingCall, Schedule
from .ring import attend_two_ahead, ring_attention
from .tokenring import attend_as_queries_pass

REGISTRY: Mapping[str, Schedule] = {
    "ring": ring_attention,
    "prefetch-2": attend_two_ahead,
    "allgather": attend_after_gathering,
    "bidirectional": attend_both_ways,
    "tokenring": attend_as_queries_pass,
}
"""By the name that a plan gives them: those of :data:`..plan.SCHEDULES`."""


def attend_along_ring(call: RingCall) -> Tensor:
    """Exact attention to the keys of the whole ring, ``[B, S, H, D]`` contiguous or not, by the schedule of the plan. Collective."""
    if call.ring.size == 1:
        parts = Merger()
        parts.add(call.attend(call.q, *call.real_keys()))
        return call.merged(parts)
    return REGISTRY[call.exchange.mesh.plan.schedule](call)
