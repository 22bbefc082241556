"""``auto``: whether compression pays at all, and how many bits each call gets.

Both are decided from numbers that all ranks have told one another before the call (:class:`Told`), by pure functions: every rank comes to the same.

**Whether it pays** is timed, not computed. The first calls of a kind travel as they are, the next ones compressed; whichever was faster on the slowest rank stays,
for later trajectories of the same kind too. Compression must win by :data:`WORTH`, so that where links do not decide nothing is lost but some calls.

**How many bits**: the fewest that keep the error within the budget. What the last call lost, at its codec, says what the next one would lose at
another (:data:`LOSS`): residuals shrink in the middle of a trajectory and grow at its ends, and the bits follow them (reverse water-filling).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Final

from .policy import Preset

LADDER: Final = ("binary", "ternary", "quaternary", "int4", "int8")
"""Codecs from the fewest bits to the most."""
LOSS: Final = {"binary": 0.60, "ternary": 0.44, "quaternary": 0.34, "int4": 0.10, "int8": 0.006}
"""What each loses of a Gaussian residual: root mean square of the error, as a share of the residual's."""
BUDGET: Final = 0.05
"""Relative error of keys and values that ``auto`` allows."""
WORTH: Final = 0.97
"""A compressed call must take at most this share of an uncompressed one's time."""
WARM: Final = 1
"""Calls of either sort that are not timed, because something is done for the first time."""
TIMED: Final = 2
"""Calls of either sort that are timed; the fastest counts."""
KINDS_KNOWN: Final = 64
"""Kinds of calls whose verdict is remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the ranks have told one another about their last call."""

    call_us: int = 0
    """What it took on the slowest of them, in microseconds; 0 where none ran."""
    error: float = 0.0
    """The greatest relative error that any of them measured; 0 where none did."""


def codec_within(budget: float, *, current: str, error: float) -> str:
    """The codec of fewest bits that would keep within the budget, after ``current`` has lost ``error``; ``current`` where nothing was measured."""
    if error <= 0:
        return current
    of_residual = error / LOSS[current]
    return next((name for name in LADDER if of_residual * LOSS[name] <= budget), LADDER[-1])


class Verdicts:
    """For which kinds of calls compression pays. One for all trajectories of a rank."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, bool] = OrderedDict()

    def of(self, kind: Hashable) -> bool | None:
        """Whether it pays; ``None`` before it was timed."""
        return self._known.get(kind)

    def keep(self, kind: Hashable, *, pays: bool) -> None:
        """Remember it."""
        self._known[kind] = pays
        if len(self._known) > KINDS_KNOWN:
            self._known.popitem(last=False)


class AutoPolicy:
    """What one trajectory's calls do, in order. Each rank has one, and all of them the same."""

    def __init__(self, preset: Preset, verdicts: Verdicts, budget: float = BUDGET) -> None:
        """``preset``: where the bits begin, and what a state keeps."""
        self._preset = preset
        self._verdicts = verdicts
        self._budget = budget
        self._plain_us: list[int] = []
        self._compressed_us: list[int] = []
        self._timed: list[int] | None = None
        """Where the duration of the call before goes."""
        self.says = ""
        """Why the last call was not compressed, for people; empty where it was."""

    def next(self, kind: Hashable, told: Told) -> Preset | None:
        """How the next call, of this kind, is encoded; ``None``: not at all."""
        if self._timed is not None:
            self._timed.append(told.call_us)
        residual = codec_within(self._budget, current=self._preset.residual, error=told.error)
        self._preset = replace(self._preset, residual=residual)
        self._timed = self._trial(kind) if self._verdicts.of(kind) is None else None
        if self._timed is self._plain_us:
            self.says = "not compressed yet: calls are timed without it first"
        elif self._verdicts.of(kind) is False:
            self.says = "not compressed: calls are faster without it"
        else:
            self.says = ""
        return None if self.says else self._preset

    def _trial(self, kind: Hashable) -> list[int] | None:
        """Where the time of the next call goes; ``None`` where enough were timed, and there is a verdict."""
        if len(self._plain_us) < WARM + TIMED:
            return self._plain_us
        # A key frame, which is one more thing that is done for the first time, and then differences.
        if len(self._compressed_us) < 1 + WARM + TIMED:
            return self._compressed_us
        pays = min(self._compressed_us[1 + WARM :]) <= WORTH * min(self._plain_us[WARM:])
        self._verdicts.keep(kind, pays=pays)
        return None
