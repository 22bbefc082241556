"""``auto``: whether compression pays at all, and how many bits each layer gets in each call.

Both are decided from numbers that all ranks have told one another before the call (:class:`Told`), by pure functions: every rank comes to the same.

**Whether it pays** is timed, not computed. The first calls of a kind travel as they are, the next ones compressed; whichever was faster on the slowest rank stays,
for all trajectories of that kind. Compression must win by :data:`WORTH`, so that where links do not decide nothing is lost but some calls.

**How many bits** follows from what the last call lost (:mod:`.allocation`). An error, and the codec that lost it, tell how large a layer's residual was: residuals
shrink in the middle of a trajectory and grow at its ends, and differ between layers. Each call measures some layers only; of the others the last estimate
stands. All branches share the estimates: they are of one latent, and where branches run side by side no rank knows which one another rank measured.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .allocation import BITS, BUDGET, LOSS, allocate
from .policy import LAYER_GROUPS, Preset

WORTH: Final = 0.97
"""A compressed call must take at most this share of an uncompressed one's time."""
TIMED: Final = 2
"""Calls of either sort that are timed, behind a first one that is not; the fastest counts."""
KINDS_KNOWN: Final = 64
"""Kinds of calls whose verdict is remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the ranks have told one another about their last call."""

    call_us: int = 0
    """What it took on the slowest of them, in microseconds; 0 where none ran."""
    errors: tuple[float, ...] = ()
    """The greatest relative error that any of them measured, of each layer group; 0 where none did. Empty: nothing was measured."""


@dataclass(slots=True)
class Trial:
    """What is known of one kind of calls."""

    plain_us: list[int] = field(default_factory=list)
    compressed_us: list[int] = field(default_factory=list)
    warmed_up: set[str] = field(default_factory=set)
    """Of ``plain`` and ``compressed``: what ran before, untimed."""
    pays: bool | None = None
    """The verdict; ``None`` before there is one."""

    def decide(self) -> None:
        """Come to a verdict, if enough was timed."""
        if self.pays is None and len(self.plain_us) >= TIMED and len(self.compressed_us) >= TIMED:
            self.pays = min(self.compressed_us) <= WORTH * min(self.plain_us)


class Trials:
    """By kind of calls; one for all trajectories of a rank, so that jobs of a few steps come to a verdict together."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Trial] = OrderedDict()

    def of(self, kind: Hashable) -> Trial:
        """That of a kind, new if need be."""
        trial = self._known.setdefault(kind, Trial())
        self._known.move_to_end(kind)
        if len(self._known) > KINDS_KNOWN:
            self._known.popitem(last=False)
        return trial


class AutoPolicy:
    """What one trajectory's calls do, in order. Each rank has one, and all of them the same."""

    def __init__(self, preset: Preset, trials: Trials, budget: float = BUDGET) -> None:
        """``preset``: where the bits begin, and what a state keeps."""
        self._preset = preset
        self._trials = trials
        self._budget = budget
        self._sizes: dict[int, float] = {}
        """Of the residual of each layer group that was measured, the last estimate: relative, as :func:`.allocation.allocate` takes it."""
        self._begun: set[Hashable] = set()
        """Branches whose key frames went out."""
        self._timed: list[int] | None = None
        """Where the duration of the call before goes."""
        self.says = ""
        """Why the last call was not compressed, for people; empty where it was."""

    def next(self, kind: Hashable, branch: Hashable, told: Told) -> Preset | None:
        """How the next call is encoded; ``None``: not at all.

        ``kind``: what calls have in common that take as long as one another, the same on all ranks. ``branch``: whose call it is, on this rank.
        """
        if self._timed is not None:
            self._timed.append(told.call_us)
        self._learn(told.errors)
        trial = self._trials.of(kind)
        trial.decide()
        self.says, self._timed = self._plain(trial)
        if self.says:
            return None
        if trial.pays is None and branch in self._begun:
            self._timed = self._warm(trial, "compressed", trial.compressed_us)
        self._begun.add(branch)  # a key frame, which is not timed
        return self._preset

    @property
    def spread(self) -> str:
        """The bits of the layers that were measured so far, for people: ``1 to 4 bits by layer``. Empty before, and where the last call was not compressed."""
        bits = [] if self.says else [BITS[self._preset.residual_of(group)] for group in self._sizes]
        if not bits:
            return ""
        few, many = min(bits), max(bits)
        return f"{few:g} to {many:g} bits by layer" if few < many else f"{few:g} bits in every layer"

    def _learn(self, errors: Sequence[float]) -> None:
        """What the last compressed call lost, with the codecs that it had: the preset is still its own, whichever branch it was of."""
        measured = {
            group: error / LOSS[self._preset.residual_of(group)] for group, error in enumerate(errors) if error > 0
        }
        if not measured:
            return
        self._sizes |= measured
        chosen = allocate(self._sizes, self._budget)
        by_group = tuple(chosen.get(group, self._preset.residual) for group in range(LAYER_GROUPS))
        self._preset = replace(self._preset, residual_by_group=by_group)

    def _plain(self, trial: Trial) -> tuple[str, list[int] | None]:
        """Why the next call is not compressed, and where its time goes."""
        if trial.pays is False:
            return "not compressed: calls are faster without it", None
        if trial.pays is None and len(trial.plain_us) < TIMED:
            return "not compressed yet: calls are timed without it first", self._warm(trial, "plain", trial.plain_us)
        return "", None

    @staticmethod
    def _warm(trial: Trial, sort: str, times: list[int]) -> list[int] | None:
        """Where the time of a call of this sort goes: not the first one's."""
        if sort in trial.warmed_up:
            return times
        trial.warmed_up.add(sort)
        return None
