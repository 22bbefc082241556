"""The residual state of one trajectory, as its model calls see it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

import psutil
import torch

from ..compression.policy import PRESETS
from ..compression.store import ResidualCall, ResidualStore
from ..parallel.group import CONTROL_WORDS, WorkerGroup
from ..parallel.plan import COMPRESSIONS, Plan
from .control import ResidualNews

SHARE: Final = 0.25
"""Of the memory that residual state may take: a GPU's, or of a host's own the part of one rank."""


def open_store(group: WorkerGroup) -> ResidualStore:
    """A store with the same bound on every rank, that of the smallest device: what one evicts all must. Collective."""
    if group.device.type == "cuda":
        own = int(SHARE * torch.cuda.get_device_properties(group.device).total_memory)
    else:
        own = int(SHARE * psutil.virtual_memory().total / group.world_size)
    everyone = group.exchange_control(torch.full((CONTROL_WORDS,), own))()
    return ResidualStore(group.device, int(everyone.min()))


class TrajectoryResiduals:
    """What is kept of one trajectory's exchange from call to call."""

    def __init__(self, store: ResidualStore, trajectory: str, plan: Plan) -> None:
        """``plan``: one that compresses."""
        self._store = store
        self._trajectory = trajectory
        self._preset = PRESETS[plan.compression]
        # Turns of an Evaluate may have other degrees each. What ranks knew of one another in one split says nothing in another.
        self._split = plan.split

    @classmethod
    def under(cls, plan: Plan, store: ResidualStore, trajectory: str) -> TrajectoryResiduals | None:
        """As the plan wants it; ``None`` where values travel."""
        return None if plan.compression == COMPRESSIONS[0] else cls(store, trajectory, plan)

    @property
    def note(self) -> str:
        """Why the trajectory is not compressed any more, for its node; empty while it is. The same on all ranks."""
        return self._store.note_of(self._trajectory)

    def news(self) -> ResidualNews:
        """What this rank tells the others before a call. Waits for the device."""
        seen = self._store.look(self._trajectory)
        return ResidualNews(
            wants_key=bool(seen.mismatches or seen.broken),
            is_broken=bool(seen.broken),
            evictions=self._store.evictions,
            state_bytes=self._store.last_bytes,
        )

    def of_call(self, branch: Hashable, agreed: ResidualNews) -> ResidualCall | None:
        """The residual side of a call, in the light of what all ranks said before it; ``None`` where there is none any more."""
        return self._store.begin_call(
            self._trajectory,
            (self._split, branch),
            self._preset,
            largest_bytes=agreed.state_bytes,
            is_key=agreed.wants_key,
            is_broken=agreed.is_broken,
        )
