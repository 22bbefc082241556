"""A curve of step differences in three numbers, and the curve that was published for FLUX.1, to set beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

_END: Final = 3
"""Steps of an end."""
_RISES_BY: Final = 1.25
"""A bathtub's ends are at least so many times as high as its middle."""
_ALIKE: Final = 1.5
"""Two curves are alike in a part where they are less than this factor apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Relative step differences over a trajectory."""

    start: float
    """Mean of the first three."""
    middle: float
    """Median of the middle third."""
    end: float
    """Mean of the last three."""

    @classmethod
    def of(cls, changes: Sequence[float]) -> Curve:
        """From the differences of all steps but the first.

        Raises:
            ValueError: fewer than nine.
        """
        if len(changes) < 3 * _END:
            raise ValueError(f"A curve needs at least {3 * _END} step differences: got {len(changes)}.")
        third = len(changes) // 3
        return cls(
            start=fmean(changes[:_END]),
            middle=median(changes[third : len(changes) - third]),
            end=fmean(changes[-_END:]),
        )

    @property
    def is_bathtub(self) -> bool:
        """Whether it is high at both ends."""
        return min(self.start, self.end) >= _RISES_BY * self.middle

    def differences_from(self, other: Curve) -> list[str]:
        """Where the two are not alike, in words."""
        found = []
        for part in ("start", "middle", "end"):
            own, theirs = getattr(self, part), getattr(other, part)
            if not theirs / _ALIKE < own < theirs * _ALIKE:
                found.append(f"{part} {own:.2f} against {theirs:.2f} ({own / theirs:.1f} x)")
        if self.is_bathtub != other.is_bathtub:
            found.append("a bathtub" if self.is_bathtub else "no bathtub")
        return found


FLUX_START: Final = (0.46, 0.35, 0.29, 0.25, 0.20, 0.17, 0.18, 0.16, 0.17, 0.22, 0.26, 0.15)
FLUX_MIDDLE: Final = 0.14
FLUX_END: Final = (0.19, 0.20, 0.21, 0.24, 0.31)
FLUX_COSINES: Final = (0.929, 0.98, 0.944)
"""At the start, in the middle, at the end."""
FLUX: Final = Curve(start=fmean(FLUX_START[:_END]), middle=FLUX_MIDDLE, end=fmean(FLUX_END[-_END:]))
"""FLUX.1-dev at 1024 x 1024 in 28 steps, averaged over layers: first and last steps and the level between, from data in the repository of
CompactFusion (arXiv:2507.17511). Image tokens only; theirs to measure, not ours."""
