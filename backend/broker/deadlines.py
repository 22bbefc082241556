"""How long the ranks may be silent while they make a job ready, and while they leave one. After that the group is started again.

Nothing else ends a rank that hangs without dying: in a kernel, in a disk that is gone, stopped by a debugger. Inside a job that runs on,
only torch's collectives have a timeout.
"""

from __future__ import annotations

from collections.abc import Sequence

from .actions import RestartGroup
from .core import Core
from .group import Turn


class Deadlines:
    """Watches the ranks' silence."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def look(self, now_s: float) -> None:
        """After every event: start the clock of a turn that is being left, and give up a group that is late."""
        turn, group = self._core.turn, self._core.group
        if turn and turn.is_leaving and turn.leaving_since_s is None:
            turn.leaving_since_s = now_s
        cause = None if group.given_up else self._silence(now_s)
        if cause:
            group.given_up = True
            self._core.emit(RestartGroup(cause=cause))

    def next_s(self) -> float | None:
        """When :meth:`look` has something to do at the earliest; None if nothing is awaited."""
        if self._core.group.given_up:
            return None
        return min(
            (at_s for at_s in (self._prepared_until_s(), self._left_until_s()) if at_s is not None), default=None
        )

    def _silence(self, now_s: float) -> str | None:
        """What to say of ranks whose time is over, as the middle of a sentence."""
        settings, turn = self._core.settings, self._core.turn
        if turn and _is_over(self._left_until_s(), now_s):
            silent = [rank for rank in range(self._core.group.world_size) if rank not in turn.done]
            return f"{_named(silent)} did not leave the job within {self._leave_s(turn):.3g} s"
        if _is_over(self._prepared_until_s(), now_s):
            silent = [
                rank.rank
                for rank in self._core.group.ranks
                if rank.owes_since_s is not None and now_s - rank.owes_since_s >= settings.prepare_s
            ]
            return f"{_named(silent)} gave no sign of life for {settings.prepare_s:.3g} s while a job was made ready"
        return None

    def _prepared_until_s(self) -> float | None:
        owed = [rank.owes_since_s for rank in self._core.group.ranks if rank.owes_since_s is not None]
        return min(owed) + self._core.settings.prepare_s if owed else None

    def _left_until_s(self) -> float | None:
        turn = self._core.turn
        return None if turn is None or turn.leaving_since_s is None else turn.leaving_since_s + self._leave_s(turn)

    def _leave_s(self, turn: Turn) -> float:
        # A cancelled job is left before its next model call: the one at hand is waited for, and steps tell how long that may take.
        settings = self._core.settings
        least_s = settings.compiling_s if turn.job.phase == "compiling" else settings.leave_s
        return max(least_s, 2 * turn.longest_step_s)


def _is_over(until_s: float | None, now_s: float) -> bool:
    return until_s is not None and now_s >= until_s


def _named(ranks: Sequence[int]) -> str:
    """``rank 1``, ``ranks 0 and 1``, ``ranks 0, 1 and 3``."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    *first, last = map(str, ranks)
    return f"ranks {', '.join(first)} and {last}"
