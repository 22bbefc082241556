"""The residual state of one trajectory, as its model calls see it."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Final

import psutil
import torch

from ..compression.auto import AutoPolicy, Told, Trials
from ..compression.channel import MEASURED_ONE_OF
from ..compression.policy import AUTO, AUTO_BEGINS, PRESETS, Preset
from ..compression.store import ResidualCall, ResidualStore
from ..parallel.group import CONTROL_WORDS, WorkerGroup
from ..parallel.plan import COMPRESSIONS, Plan
from .control import ResidualNews
from .savings import Savings

SHARE: Final = 0.25
"""Of the memory that residual state may take: a GPU's, or of a host's own the part of one rank."""
TURNS_APART: Final = 5
"""From one rank's first turn to the next one's, of 8: no common factor, so eight ranks take eight turns, and some ranks take turns far apart
(the golden section, nearly)."""


def open_store(group: WorkerGroup, ranks_on_device: int) -> ResidualStore:
    """A store with the same bound on every rank, that of the smallest device: what one evicts all must. Collective."""
    if group.device.type == "cuda":
        own = int(SHARE * torch.cuda.get_device_properties(group.device).total_memory / ranks_on_device)
    else:
        own = int(SHARE * psutil.virtual_memory().total / group.world_size)
    everyone = group.exchange_control(torch.full((CONTROL_WORDS,), own))()
    first_turn = TURNS_APART * group.rank % MEASURED_ONE_OF
    return ResidualStore(group.device, int(everyone.min()), first_turn)


class TrajectoryResiduals:
    """What is kept of one trajectory's exchange from call to call."""

    def __init__(self, store: ResidualStore, trials: Trials, trajectory: str, plan: Plan) -> None:
        """``plan``: one that compresses."""
        self._store = store
        self._trajectory = trajectory
        self._auto = AutoPolicy(PRESETS[AUTO_BEGINS], trials) if plan.compression == AUTO else None
        self._wants_key = self._is_broken = False
        self._began_s: float | None = None
        self._told = ResidualNews()
        self.compression = plan.compression
        self.split = plan.split
        """Of the running turn: those of an Evaluate may have other degrees each. What ranks knew of one another in one split says nothing in another."""
        self.savings = Savings()

    @property
    def note(self) -> str:
        """Why the trajectory is not compressed any more, or keeps less than was asked for, for its node. The same on all ranks."""
        return self._store.note_of(self._trajectory)

    @property
    def lines(self) -> list[str]:
        """What a running job's node is told."""
        return [line for line in (self.savings.line, self._says, self.note) if line]

    @property
    def summary(self) -> list[str]:
        """What is told at the end, by this rank: the figures, and what went wrong."""
        figures = self.savings.summary(self._store.bytes_of(self._trajectory))
        return [f"{self.compression}: {figures}", *filter(None, [self._says, self.note])]

    @property
    def _says(self) -> str:
        if self._auto is None:
            return ""
        gave_up = self._store.gave_up(self._trajectory)
        return self._auto.says or ("" if gave_up else self._auto.spread)

    def look(self) -> None:
        """Take in what happened since the last look. Asked before a call and after the last one, so that a trajectory never
        answers for another's transfers. Waits for the device."""
        seen = self._store.look(self._trajectory)
        if self._began_s is not None:
            call_us = max(1, round(1e6 * (time.perf_counter() - self._began_s)))
            errors_ppm = tuple(round(1e6 * error) for error in seen.errors)
            self._told, self._began_s = ResidualNews(call_us=call_us, errors_ppm=errors_ppm), None
            self.savings.count_call(compressed=seen.payload_bytes > 0)
        self._wants_key |= bool(seen.mismatches or seen.broken)
        self._is_broken |= bool(seen.broken)
        self.savings.add(seen)

    def news(self) -> ResidualNews:
        """What this rank tells the others before a call. Waits for the device."""
        self.look()
        wants_key, is_broken, told = self._wants_key, self._is_broken, self._told
        self._wants_key, self._is_broken, self._told = False, False, ResidualNews()
        return replace(
            told,
            wants_key=wants_key,
            is_broken=is_broken,
            evictions=self._store.evictions,
            state_bytes=self._store.last_bytes,
        )

    def of_call(self, branch: Hashable, agreed: ResidualNews, kind: Hashable) -> ResidualCall | None:
        """The residual side of a call, in the light of what all ranks said before it; ``None`` where values are to travel.

        ``kind``: what ``auto`` times apart; the same on all ranks.
        """
        self._began_s = time.perf_counter()
        preset = self._preset_of(branch, agreed, (kind, self.split))
        place = self.split, branch
        if preset is None:
            self._store.pass_over(self._trajectory, place, largest_bytes=agreed.state_bytes, is_key=agreed.wants_key)
            return None
        return self._store.begin_call(
            self._trajectory,
            place,
            preset,
            largest_bytes=agreed.state_bytes,
            is_key=agreed.wants_key,
            is_broken=agreed.is_broken,
        )

    def _preset_of(self, branch: Hashable, agreed: ResidualNews, kind: Hashable) -> Preset | None:
        if self._auto is None:
            return PRESETS[self.compression]
        if self._store.gave_up(
            self._trajectory
        ):  # what is not compressed any more says nothing about how fast compressed calls are
            return None
        errors = tuple(error_ppm / 1e6 for error_ppm in agreed.errors_ppm)
        return self._auto.next(kind, branch, Told(call_us=agreed.call_us, errors=errors))


class Residuals:
    """The residual side of every trajectory that this rank has begun."""

    def __init__(self, store: ResidualStore) -> None:
        self._store = store
        self._trials = Trials()
        self._open: dict[str, TrajectoryResiduals] = {}

    def of(self, plan: Plan, trajectory: str) -> TrajectoryResiduals | None:
        """As the plan wants it, the same one until it is forgotten; ``None`` where values travel."""
        if plan.compression == COMPRESSIONS[0]:
            return None
        known = self._open.get(trajectory)
        if known is None or known.compression != plan.compression:
            known = self._open[trajectory] = TrajectoryResiduals(self._store, self._trials, trajectory, plan)
        known.split = plan.split
        return known

    def forget(self, trajectories: Iterable[str]) -> None:
        """They have ended, or were cancelled. Ids that are not known are passed over."""
        ended = list(trajectories)
        self._store.forget(ended)
        for trajectory in ended:
            self._open.pop(trajectory, None)
