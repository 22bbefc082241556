"""Which kernel a local attention runs on.

On a CPU there is one, and nothing is measured. On a GPU every rank checks, once per case, which kernels it has and which are right there; rank 0
of the sequence times those that all ranks can use (or reads the times it kept), and tells the others. A choice made by each rank alone
could differ, and so would the numbers of one picture's parts.

Collective on the first attention of a case, and a dictionary lookup afterwards. All ranks of a sequence see the same cases in the same order: they
follow from the plan and the partition, and choices are kept by the ranks that made them together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ...errors import InternalError
from ..mesh import SequenceMesh
from ..partition import Partition
from .attention import AttentionProvider
from .cache import TimesCache
from .case import AttentionCase, case_of
from .from_xfuser import XFUSER
from .kernels import CpuFlash, CudaCudnn, CudaEfficient, CudaFlash, MathFallback
from .notes import NOTES
from .reason import Reason
from .trials import Trials

MATH: Final = MathFallback()
PROVIDERS: Final[tuple[AttentionProvider, ...]] = (CpuFlash(), CudaFlash(), CudaEfficient(), CudaCudnn(), *XFUSER, MATH)
"""In order of preference where nothing is measured. The same list on every rank: a choice travels as a place in it."""
SHORTCUTS: Final = 256
NO_PLACE: Final = -1
"""What rank 0 says when all kernels fail as it times them."""


@functools.cache
def choose_provider(device: torch.device, dtype: torch.dtype, head_dim: int) -> AttentionProvider:
    """The first exact provider that takes such tensors. Raises :class:`InternalError` when none does."""
    for provider in PROVIDERS:
        if provider.exact and provider.takes(device, dtype, head_dim):
            return provider
    raise InternalError(f"No exact attention takes {dtype} tensors of head_dim {head_dim} on {device.type}.")


def provider_for(q_BnHD: Tensor, scale: float, partition: Partition, mesh: SequenceMesh) -> AttentionProvider:
    """The kernel for an attention whose query this rank holds as ``[B, n, H, D]``. Collective, see above."""
    if q_BnHD.device.type != "cuda":
        provider = choose_provider(q_BnHD.device, q_BnHD.dtype, q_BnHD.shape[3])
    else:
        provider = _choices(q_BnHD.device).seen(q_BnHD, scale, partition, mesh)
    NOTES.runs(provider.name)
    return provider


@functools.cache
def _choices(device: torch.device) -> Choices:
    return Choices(PROVIDERS, device, TimesCache.of_this_process(device))


class _Seen(NamedTuple):
    """A shortcut. It keeps the objects whose identities are its key."""

    provider: AttentionProvider
    partition: Partition
    mesh: SequenceMesh


class Choices:
    """The choices of one process on one device."""

    def __init__(self, providers: Sequence[AttentionProvider], device: torch.device, cache: TimesCache) -> None:
        self._providers = providers
        self._device = device
        self._trials = Trials(providers, device, cache)
        self._chosen: dict[tuple[tuple[int, ...], AttentionCase], AttentionProvider] = {}
        self._seen: dict[tuple[int, int, torch.dtype, torch.Size, float], _Seen] = {}

    def seen(self, q_BnHD: Tensor, scale: float, partition: Partition, mesh: SequenceMesh) -> AttentionProvider:
        """The kernel of an attention, by a shortcut where the very same objects came before: to name a case takes several times as long.

        Only this rank's business: what a shortcut leads to was chosen by all.
        """
        key = id(partition), id(mesh), q_BnHD.dtype, q_BnHD.shape, scale
        known = self._seen.get(key)
        if known is None:
            if len(self._seen) >= SHORTCUTS:
                self._seen.clear()
            known = _Seen(self.get(case_of(q_BnHD, scale, partition, mesh), mesh), partition, mesh)
            self._seen[key] = known
        return known.provider

    def get(self, case: AttentionCase, mesh: SequenceMesh) -> AttentionProvider:
        """The kernel of a case on this mesh: every rank of the sequence asks for the same one at the same time."""
        key = mesh.sequence.ranks, case
        if key not in self._chosen:
            self._chosen[key] = self._choose(case, mesh)
        return self._chosen[key]

    def _choose(self, case: AttentionCase, mesh: SequenceMesh) -> AttentionProvider:
        """Both collectives are reached whatever fails on the way: the other ranks wait in them."""
        right = self._trials.right(case)
        mine = torch.tensor([any(p is r for r in right) for p in self._providers], device=self._device)
        usable = [p for p, ok in zip(self._providers, _on_every_rank(mine, mesh).tolist(), strict=True) if ok]
        if not usable:
            return _by_formula(case, "no kernel is right on every rank")
        place = torch.zeros(1, dtype=torch.int64, device=self._device)
        if mesh.sequence.index == 0:
            place.fill_(self._place(self._trials.winner(usable, case)))
        if mesh.world_size > 1:
            mesh.transport.broadcast(place, mesh.sequence.ranks[0], mesh.sequence.process_group)
        if int(place) == NO_PLACE:
            return _by_formula(case, "no kernel could be timed")
        chosen = self._providers[int(place)]
        NOTES.chose(case.key, chosen.name)
        return chosen

    def _place(self, provider: AttentionProvider | None) -> int:
        return next((place for place, known in enumerate(self._providers) if known is provider), NO_PLACE)


def _on_every_rank(mine: Tensor, mesh: SequenceMesh) -> Tensor:
    """Bool ``[providers]``: what this and all other ranks of the sequence said. Collective."""
    if mesh.world_size == 1:
        return mine
    gathered = mine.new_empty(mesh.world_size, len(mine))
    mesh.transport.all_gather(gathered, mine, mesh.sequence.process_group)
    return gathered.all(0)


def _by_formula(case: AttentionCase, why: str) -> AttentionProvider:
    NOTES.trouble("attention runs by the formula, slowly,", case.key, Reason(why))
    return MATH
