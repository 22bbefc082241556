"""The channels of all trajectories on one rank, within a bound of bytes.

Every rank makes and drops the same channels in the same calls, by the same rule, from the same numbers: what a transfer holds is never a rank's own
decision. So a ledger counts, for each trajectory, what the *largest* rank needs for it; before every call the ranks tell one another what the last
one has made of that.

The bound holds within a call too. A channel for which a rank has no room keeps nothing there: it is new, so its transfer is a key frame whatever else happens.
The next ledger shows it to everybody, and what that call made is dropped everywhere. Whole trajectories make room, the one longest unused
first; what is dropped begins again with key frames. A trajectory that does not fit even alone keeps its bases in 8 bits from then on (:func:`.memory.form_instead`).
If they do not fit either it is not compressed any more, and neither is one that has to begin anew time and again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ..wire.texts import size_text
from .channel import Channel, Sightings, Watch, bytes_of
from .codecs import Codec
from .memory import form_instead
from .policy import Preset, layer_group
from .state import MatrixShape, StateForm

RESTARTS = 3
"""A trajectory that had to begin anew in so many of its latest :data:`RESTART_CALLS` calls is not compressed any more."""
RESTART_CALLS = 16
"""More than one step has: it may be only one of its branches that never comes out right."""

Key = tuple[int, str, int, int]
"""Of a channel within one branch: layer, what travels, origin, and lane or destination."""


Channels = dict[tuple[int, Key], Channel]
"""Of one branch."""


@dataclass(slots=True)
class Kept:
    """What is kept of one trajectory."""

    asked: StateForm
    """How much of a state its preset keeps."""
    watch: Watch
    """Its own: no other trajectory is to answer for what happened to this one."""
    form: StateForm = field(init=False)
    """How much is kept: as much as was asked for, or less where that does not fit. It counts for every channel that is made."""
    refused_bytes: int = 0
    """What the form that was asked for had come to take, on the largest rank, when it did not fit; 0 while it does."""
    branches: dict[Hashable, Channels] = field(default_factory=dict)
    made_bytes: int = 0
    """What its channels take, or would take, on this rank."""
    largest_bytes: int = 0
    """The same of the largest rank, as far as the ranks have told one another."""
    beside_bytes: int = 0
    """What the ledger counted for the others as its last call began: some may be gone before it is known what that call made."""
    calls: int = 0
    restarts: list[int] = field(default_factory=list)
    """The latest calls that began anew, by number."""
    gave_up: str = ""
    """Why it is not compressed any more; empty while it is."""

    def __post_init__(self) -> None:
        self.form = self.asked

    @property
    def bytes(self) -> int:
        """What its channels take on this rank, or would take."""
        return sum(channel.bytes for branch in self.branches.values() for channel in branch.values())

    def take(self, room: int, channel_bytes: int) -> bool:
        """Count a new channel; whether it fits into what this rank has room for."""
        self.made_bytes += channel_bytes
        return self.made_bytes <= room

    def drop(self) -> None:
        """Keep nothing of it for now: it begins again with key frames."""
        self.branches.clear()
        self.made_bytes = self.largest_bytes = self.beside_bytes = 0

    def shrink(self, limit_bytes: int) -> None:
        """It does not fit, even alone: keep less of it, or nothing and compress it no more. By the ledger alone: all ranks do the same."""
        form = form_instead(self.form, self.largest_bytes, limit_bytes)
        if form is not None:
            self.form, self.refused_bytes = form, self.largest_bytes
            self.drop()
            return
        size, limit = size_text(self.largest_bytes), size_text(limit_bytes)
        even = " even with bases in 8 bits" if self.refused_bytes else ""
        self.give_up(f"not compressed: {size} of residual state do not fit into {limit}{even}")

    def give_up(self, why: str) -> None:
        """Compress it no more."""
        self.gave_up = why
        self.drop()

    def note(self, limit_bytes: int) -> str:
        """What of it is not as it was asked for, in words for its user."""
        if self.gave_up or not self.refused_bytes:
            return self.gave_up
        # Its branches may have been fewer then. What it takes now is not known before the ranks have told one another.
        now = f": {size_text(self.largest_bytes)}" if self.largest_bytes else ""
        asked, limit = size_text(self.refused_bytes), size_text(limit_bytes)
        return f"bases kept in 8 bits{now} instead of {asked} or more, which do not fit into {limit}"


class ResidualStore:
    """All residual state of one rank."""

    def __init__(self, device: torch.device, limit_bytes: int, first_turn: int = 0) -> None:
        """``first_turn``: see :class:`.channel.Watch`."""
        self.limit_bytes = limit_bytes
        self.evictions = 0
        """Trajectories dropped for want of room so far: equal on all ranks, or they are out of step."""
        self._device = device
        self._first_turn = first_turn
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        """The one that ran last is the last."""

    @property
    def last_bytes(self) -> int:
        """What this rank tells the others before a call: what the trajectory that ran last, whichever it was, needs here."""
        last = self._last
        return 0 if last is None else last.made_bytes

    @property
    def _last(self) -> Kept | None:
        return next(reversed(self._kept.values()), None)

    def bytes_of(self, trajectory: str) -> int:
        """What its states take on this rank."""
        kept = self._kept.get(trajectory)
        return 0 if kept is None else kept.bytes

    def note_of(self, trajectory: str) -> str:
        """Why a trajectory is not compressed any more, or keeps less than was asked for, in words for its user; else empty. The same on all ranks."""
        kept = self._kept.get(trajectory)
        return "" if kept is None else kept.note(self.limit_bytes)

    def gave_up(self, trajectory: str) -> bool:
        """Whether it is not compressed any more. The same on all ranks."""
        kept = self._kept.get(trajectory)
        return kept is not None and bool(kept.gave_up)

    def look(self, trajectory: str) -> Sightings:
        """What happened to a trajectory's payloads since the last look. Waits for the device."""
        kept = self._kept.get(trajectory)
        return Sightings() if kept is None else kept.watch.look()

    def hashes(self, trajectory: str) -> dict[Hashable, int]:
        """The hash of what each channel of a trajectory knows: the same on all ranks that have it. Waits for the device."""
        kept = self._kept.get(trajectory)
        branches = {} if kept is None else kept.branches
        return {
            (branch, place): int(channel.hash())
            for branch, channels in branches.items()
            for place, channel in channels.items()
            if not channel.is_empty
        }

    def begin_call(
        self,
        trajectory: str,
        branch: Hashable,
        preset: Preset,
        *,
        largest_bytes: int,
        is_key: bool = False,
        is_broken: bool = False,
    ) -> ResidualCall | None:
        """The residual side of a model call; ``None`` where there is none any more: then values travel by the plan's codec.

        ``largest_bytes``: the greatest of all ranks' :attr:`last_bytes`. ``is_key``: every branch of the trajectory starts anew;
        ``is_broken``: because of numbers that were not finite.
        """
        kept = self._kept.get(trajectory)
        if (last := self._last) is not None:
            last.largest_bytes = largest_bytes
            if last.largest_bytes + last.beside_bytes > self.limit_bytes:
                self._make_room(last, running=kept)
        if kept is None or kept.asked != preset.form:
            kept = self._kept[trajectory] = Kept(preset.form, Watch(self._device, self._first_turn))
        self._kept.move_to_end(trajectory)
        if is_key and not kept.gave_up:
            self._start_anew(kept, is_broken)
        if kept.gave_up:
            return None
        kept.calls += 1
        kept.made_bytes = kept.bytes
        others = [other for other in self._kept.values() if other is not kept]
        kept.beside_bytes = sum(other.largest_bytes for other in others)
        room = self.limit_bytes - sum(other.bytes for other in others)
        channels = kept.branches.setdefault(branch, {})
        preset = replace(preset, form=kept.form)
        return ResidualCall(channels, preset, self._device, kept.watch, partial(kept.take, room))

    def pass_over(self, trajectory: str, branch: Hashable, *, largest_bytes: int, is_key: bool) -> None:
        """A model call that is not compressed although its trajectory may be again: what the ranks told before it holds all the same.

        Nothing is kept of its branch: by the next compressed call it would be old, and it takes others' room.
        """
        if (last := self._last) is not None:
            last.largest_bytes = largest_bytes
        if (kept := self._kept.get(trajectory)) is None:
            return
        if is_key:
            kept.branches.clear()
        kept.branches.pop(branch, None)

    @property
    def _ledger_bytes(self) -> int:
        return sum(kept.largest_bytes for kept in self._kept.values())

    def _make_room(self, last: Kept, running: Kept | None) -> None:
        """For what the last call made. Some rank may have had no room for part of it, so it is nobody's."""
        last.branches.clear()
        if last.largest_bytes > self.limit_bytes:
            self.evictions += 1
            last.shrink(self.limit_bytes)
            return
        for kept in self._kept.values():
            if self._ledger_bytes <= self.limit_bytes:
                return
            if kept is not last and kept is not running and kept.largest_bytes:
                self.evictions += 1
                kept.drop()
        if self._ledger_bytes > self.limit_bytes:  # of these two, one has whole states
            self.evictions += 1
            last.drop()

    @staticmethod
    def _start_anew(kept: Kept, is_broken: bool) -> None:
        kept.branches.clear()
        kept.restarts = [call for call in kept.restarts if call > kept.calls - RESTART_CALLS] + [kept.calls]
        if len(kept.restarts) >= RESTARTS:
            why = "numbers that are not finite" if is_broken else "ranks' copies of earlier calls differ"
            kept.give_up(f"compression paused: {why}")

    def forget(self, trajectories: Iterable[str]) -> None:
        """They have ended, or were cancelled. Ids that are not known are passed over."""
        for trajectory in trajectories:
            self._kept.pop(trajectory, None)


class ResidualCall:
    """The residual side of one model call, or of a part of it."""

    def __init__(
        self,
        channels: Channels,
        preset: Preset,
        device: torch.device,
        watch: Watch,
        take: Callable[[int], bool],
        part: int = 0,
    ) -> None:
        """``take``: count a new channel of so many bytes, less those of what it replaces; whether there is room for it."""
        self.device = device
        self._channels = channels
        self._preset = preset
        self._watch = watch
        self._take = take
        self._part = part

    def part(self, number: int) -> ResidualCall:
        """Of a call that runs as several forward passes: the side of one of them."""
        return ResidualCall(self._channels, self._preset, self.device, self._watch, self._take, number)

    def channel(self, key: Key, shapes: Sequence[MatrixShape], dtype: torch.dtype) -> tuple[Channel, Codec]:
        """A channel, and what its next transfer carries: a key frame where it is new or its matrices have other shapes than before."""
        place, group = (self._part, key), layer_group(key[0])
        channel = self._channels.get(place)
        if channel is None or (channel.shapes, channel.dtype) != (tuple(shapes), dtype):
            form = self._preset.form
            replaced = 0 if channel is None else channel.bytes  # which are free from here on
            keeps = self._take(bytes_of(shapes, dtype, form) - replaced)
            channel = Channel(shapes, dtype, self.device, form, self._watch, keeps=keeps, group=group)
            self._channels[place] = channel
        return channel, self._preset.codec(is_key=channel.is_empty, group=group)
