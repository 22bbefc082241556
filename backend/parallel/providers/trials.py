"""One rank's trials of the kernels it has: which are right, and which is the fastest. Nothing here raises: the other ranks wait for the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from .attention import AttentionProvider
from .cache import Times, TimesCache
from .case import AttentionCase, draw
from .check import fault, time_ms
from .kernels import MathFallback
from .notes import NOTES
from .reason import reason_of

WORTH_IT: Final = 0.97
"""A kernel is preferred to one that stands before it when it takes at most this share of its time: noise must not decide."""


def fastest(usable: Sequence[str], times: Times) -> str:
    """The name that wins. ``usable`` in order of preference; one without a time loses against one that has one."""
    best = usable[0]
    for name in usable[1:]:
        if times.get(name, float("inf")) < WORTH_IT * times.get(best, float("inf")):
            best = name
    return best


class Trials:
    """On one device, with the times that were kept of earlier ones."""

    def __init__(self, providers: Sequence[AttentionProvider], device: torch.device, cache: TimesCache) -> None:
        self._providers = providers
        self._device = device
        self._cache = cache

    def right(self, case: AttentionCase) -> list[AttentionProvider]:
        """Those that are right here, for every kind of call that the schedule makes; none where that cannot be found out. Never raises."""
        try:
            right = self._candidates(case)
            for call in case.calls if right else ():
                tensors = draw(case, self._device, call)
                right = [p for p in right if self._is_right(p, tensors, case)]
                del tensors  # before the next ones are drawn: memory may be short
        except Exception as error:  # there is no room for more tensors, say
            NOTES.trouble("no kernel could be checked", case.key, reason_of(error))
            return []
        return right

    def _is_right(
        self, provider: AttentionProvider, tensors: tuple[Tensor, Tensor, Tensor], case: AttentionCase
    ) -> bool:
        reason = fault(provider, *tensors, case.scale, needs_lse=case.needs_lse)
        if reason is not None:
            NOTES.trouble(f"{provider.name} is off", case.key, reason)
        return reason is None

    def winner(self, usable: Sequence[AttentionProvider], case: AttentionCase) -> AttentionProvider | None:
        """The fastest, by the times kept on disk and those of what was never measured; ``None`` when all fail as they are timed. Never raises.

        Nothing is measured where there is one, and where there is no room for it: then the first is as good as any.
        """
        if len(usable) == 1:
            return usable[0]
        try:
            times = self._times(usable, case)
        except Exception as error:
            NOTES.trouble("no kernel could be timed", case.key, reason_of(error))
            return usable[0]
        timed = [p for p in usable if times[p.name] < float("inf")]
        if not timed:
            return None
        name = fastest([p.name for p in timed], times)
        return next(p for p in timed if p.name == name)

    def _times(self, usable: Sequence[AttentionProvider], case: AttentionCase) -> dict[str, float]:
        """Of each, infinite where it fails."""
        known = self._cache.get(case.key)
        missing = [p for p in usable if p.name not in known]
        if not missing:
            return known
        tensors = draw(case, self._device)
        measured = {p.name: self._time(p, tensors, case) for p in missing}
        finite = {name: ms for name, ms in measured.items() if ms < float("inf")}  # a failure may be of the moment
        self._cache.put(case.key, known | finite)
        return known | measured

    def _time(self, provider: AttentionProvider, tensors: tuple[Tensor, Tensor, Tensor], case: AttentionCase) -> float:
        try:
            return time_ms(provider, *tensors, case.scale)
        except Exception as error:  # right once is not always: a workspace may not fit the second time
            NOTES.trouble(f"{provider.name} is off", case.key, reason_of(error, " as it is timed"))
            return float("inf")

    def _candidates(self, case: AttentionCase) -> list[AttentionProvider]:
        """Exact kernels that take such tensors. Not the formula, whose scores may not fit into memory: it is there when all others fail."""
        return [
            p
            for p in self._providers
            if p.exact and not isinstance(p, MathFallback) and p.takes(self._device, case.dtype, case.head_dim)
        ]
