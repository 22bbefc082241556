"""The residual state of one trajectory, as its model calls see it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final

import psutil
import torch

from ..compression.policy import PRESETS
from ..compression.store import ResidualCall, ResidualStore
from ..parallel.group import CONTROL_WORDS, WorkerGroup
from ..parallel.plan import COMPRESSIONS, Plan
from .control import ResidualNews
from .savings import Savings

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

    def __init__(self, store: ResidualStore, trajectory: str, preset: str) -> None:
        self._store = store
        self._trajectory = trajectory
        self._preset = PRESETS[preset]
        self._wants_key = False
        self.savings = Savings()

    @property
    def note(self) -> str:
        """What went wrong, for the node; empty when nothing did."""
        return ""

    @property
    def preset(self) -> str:
        """Its name."""
        return self._preset.name

    @property
    def lines(self) -> list[str]:
        """What a running job's node is told."""
        return [line for line in (self.savings.line, self.note) if line]

    @property
    def summary(self) -> list[str]:
        """What is told at the end, by this rank: the figures, and what went wrong."""
        figures = self.savings.summary(self._store.bytes_of(self._trajectory))
        return [f"{self.preset}: {figures}", *filter(None, [self.note])]

    def look(self) -> None:
        """Take in what happened since the last look. Asked before a call and after the last one, so that a trajectory never
        answers for another's transfers. Waits for the device."""
        seen = self._store.watch.look()
        self._wants_key |= bool(seen.mismatches or seen.broken)
        self.savings.add(seen)

    def news(self) -> ResidualNews:
        """What this rank tells the others before a call. Waits for the device."""
        self.look()
        wants_key, self._wants_key = self._wants_key, False
        return ResidualNews(
            wants_key=wants_key,
            evictions=self._store.evictions,
            state_bytes=self._store.bytes_of(self._trajectory),
        )

    def of_call(self, branch: Hashable, agreed: ResidualNews) -> ResidualCall | None:
        """The residual side of a call, in the light of what all ranks said before it; ``None`` where there is no room for it."""
        return self._store.begin_call(
            self._trajectory, branch, self._preset, largest_bytes=agreed.state_bytes, is_key=agreed.wants_key
        )


class Residuals:
    """The residual side of every trajectory that this rank has begun."""

    def __init__(self, store: ResidualStore) -> None:
        self._store = store
        self._open: dict[str, TrajectoryResiduals] = {}

    def of(self, plan: Plan, trajectory: str) -> TrajectoryResiduals | None:
        """As the plan wants it, the same one until it is forgotten; ``None`` where values travel."""
        if plan.compression == COMPRESSIONS[0]:
            return None
        known = self._open.get(trajectory)
        if known is None or known.preset != plan.compression:
            known = self._open[trajectory] = TrajectoryResiduals(self._store, trajectory, plan.compression)
        return known

    def forget(self, trajectories: Iterable[str]) -> None:
        """They have ended, or were cancelled. Ids that are not known are passed over."""
        ended = list(trajectories)
        self._store.forget(ended)
        for trajectory in ended:
            self._open.pop(trajectory, None)
