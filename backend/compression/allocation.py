"""How the bits of a call are shared out among its layers: reverse water-filling.

What a codec loses is a fixed share of the residual (:data:`LOSS`), so a layer that changes much needs more bits than one that hardly moves. Bits go
where they remove most error each, until the layers together keep within the budget. It is their *relative* errors that are added up, and all
layers count alike: an error relative to the energy of them all would leave the quiet ones nothing, although networks normalise what a layer
adds, so that energy does not say how much it counts. Nobody knows how much it does; therefore no single layer may lose more than
:data:`CEILING` times the budget either, however little the others lose.

Nothing but arithmetic on numbers that all ranks share, in a fixed order: every rank comes to the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from typing import Final

LADDER: Final = ("binary", "ternary", "quaternary", "int4", "int8")
"""Codecs from the fewest bits to the most."""
BITS: Final = {"binary": 1.0, "ternary": 1.6, "quaternary": 2.0, "int4": 4.0, "int8": 8.0}
"""Of a number, without scales."""
LOSS: Final = {"binary": 0.60, "ternary": 0.44, "quaternary": 0.35, "int4": 0.118, "int8": 0.0065}
"""What each loses of a Gaussian residual at head_dim 128: root mean square of the error, as a share of the residual's."""
BUDGET: Final = 0.05
"""Relative error (root mean square) of what is exchanged that ``auto`` aims at: not tuned on pictures yet."""
CEILING: Final = 2.0
"""Times the budget that a single layer may lose."""


def allocate(sizes: Mapping[int, float], budget: float = BUDGET) -> dict[int, str]:
    """The codec of each layer group: few bits in all, with a root mean square of the groups' relative errors within ``budget``.

    ``sizes``: of each group's residual, its root mean square as a share of that of its numbers. Groups count as equally large.
    A step up the ladder removes ``(loss^2 - next_loss^2) * size^2`` for the bits that it adds. Of one ladder these gains fall from rung to rung, so that taking
    the greatest of all that are left is never undone: at most the last step brings more than was missing.

    >>> allocate({0: 0.3, 1: 0.01}, budget=0.05)  # of 0.3 two bits would lose 0.105, more than the ceiling
    {0: 'int4', 1: 'binary'}
    """
    rungs = {group: _rung_within(CEILING * budget, size) for group, size in sizes.items()}
    excess = fsum(_lost(size, rungs[group]) for group, size in sizes.items()) - len(sizes) * budget * budget
    steps = [
        (-_gain(size, rung), group, rung)
        for group, size in sizes.items()
        for rung in range(rungs[group] + 1, len(LADDER))
    ]
    for _, group, rung in sorted(steps):
        if excess <= 0:
            break
        excess -= _lost(sizes[group], rung - 1) - _lost(sizes[group], rung)
        rungs[group] = rung
    return {group: LADDER[rung] for group, rung in rungs.items()}


def _rung_within(bound: float, size: float) -> int:
    """The lowest one on which no more than ``bound`` is lost, or else the highest."""
    return next((rung for rung, name in enumerate(LADDER) if size * LOSS[name] <= bound), len(LADDER) - 1)


def _lost(size: float, rung: int) -> float:
    """The square of the relative error."""
    error = size * LOSS[LADDER[rung]]
    return error * error


def _gain(size: float, rung: int) -> float:
    """What a step up to this rung removes, for each bit that it adds."""
    return (_lost(size, rung - 1) - _lost(size, rung)) / (BITS[LADDER[rung]] - BITS[LADDER[rung - 1]])
