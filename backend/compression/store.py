"""The channels of all trajectories on one rank, within a bound of bytes.

Every rank makes and drops the same channels in the same calls, by the same rule, from the same numbers: what a transfer holds is never a rank's own
decision. So a ledger counts, for each trajectory, what the *largest* rank needs for it; the ranks tell one another before every call.

Whole trajectories are dropped, the one longest unused first; what is dropped begins again with a key frame. A trajectory that does not fit even alone is
not compressed any more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from .channel import Channel, Watch
from .codecs import Codec
from .policy import Preset
from .state import MatrixShape, StateForm

Key = Hashable
"""Of a channel within one branch: layer, tensor, origin and, where there is one, destination."""


Channels = dict[Key, Channel]
"""Of one branch."""


@dataclass(slots=True)
class Kept:
    """What is kept of one trajectory."""

    form: StateForm
    branches: dict[Hashable, Channels] = field(default_factory=dict)
    largest_bytes: int = 0
    """What the largest rank needs, as far as the ranks have told one another."""
    is_given_up: bool = False
    """Whether it does not fit even alone."""


class ResidualStore:
    """All residual state of one rank."""

    def __init__(self, device: torch.device, limit_bytes: int) -> None:
        self.watch = Watch(device)
        self.limit_bytes = limit_bytes
        self.evictions = 0
        """Trajectories dropped for want of room so far: equal on all ranks, or they are out of step."""
        self._device = device
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def bytes_of(self, trajectory: str) -> int:
        """What its states take on this rank."""
        kept = self._kept.get(trajectory)
        channels = [] if kept is None else [c for branch in kept.branches.values() for c in branch.values()]
        return sum(channel.bytes for channel in channels)

    def hashes(self, trajectory: str) -> dict[Hashable, int]:
        """The hash of what each channel of a trajectory knows: the same on all ranks that have it. Waits for the device."""
        kept = self._kept.get(trajectory)
        branches = {} if kept is None else kept.branches
        return {
            (branch, place): int(channel.hash())
            for branch, channels in branches.items()
            for place, channel in channels.items()
        }

    def begin_call(
        self, trajectory: str, branch: Hashable, preset: Preset, *, largest_bytes: int, is_key: bool = False
    ) -> ResidualCall | None:
        """The residual side of a model call; ``None`` where there is no room for it: then values travel by the plan's codec.

        ``largest_bytes``: the greatest of all ranks' :meth:`bytes_of`. ``is_key``: every branch of the trajectory starts anew.
        """
        kept = self._kept.get(trajectory)
        if kept is None or kept.form != preset.form:
            kept = self._kept[trajectory] = Kept(preset.form)
        self._kept.move_to_end(trajectory)
        kept.largest_bytes = largest_bytes
        self._make_room(kept)
        if kept.is_given_up:
            return None
        if is_key:
            kept.branches.clear()
        return ResidualCall(kept.branches.setdefault(branch, {}), preset, self._device, self.watch)

    def _make_room(self, running: Kept) -> None:
        while sum(kept.largest_bytes for kept in self._kept.values()) > self.limit_bytes:
            name, oldest = next(iter(self._kept.items()))
            self.evictions += 1
            if oldest is running:
                running.is_given_up = True
                running.branches.clear()
                running.largest_bytes = 0
                return
            del self._kept[name]

    def forget(self, trajectories: Iterable[str]) -> None:
        """They have ended, or were cancelled. Ids that are not known are passed over."""
        for trajectory in trajectories:
            self._kept.pop(trajectory, None)


class ResidualCall:
    """The residual side of one model call, or of a part of it."""

    def __init__(self, channels: Channels, preset: Preset, device: torch.device, watch: Watch, part: int = 0) -> None:
        self._channels = channels
        self._preset = preset
        self._device = device
        self._watch = watch
        self._part = part

    def part(self, number: int) -> ResidualCall:
        """Of a call that runs as several forward passes: the side of one of them."""
        return ResidualCall(self._channels, self._preset, self._device, self._watch, number)

    def channel(self, key: Key, shapes: Sequence[MatrixShape], dtype: torch.dtype) -> tuple[Channel, Codec]:
        """A channel, and what its next transfer carries: a key frame where it is new or its matrices have other shapes than before."""
        place = self._part, key
        channel = self._channels.get(place)
        if channel is None or (channel.shapes, channel.dtype) != (tuple(shapes), dtype):
            channel = self._channels[place] = Channel(shapes, dtype, self._device, self._preset.form, self._watch)
        return channel, self._preset.codec(is_key=channel.is_empty)
