"""What each rank runs for test_providers: choices of attention kernels where ranks would choose differently alone."""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.providers import NOTES, Attended, AttentionProvider, CpuFlash, trials
from tutti.backend.parallel.providers.cache import TimesCache
from tutti.backend.parallel.providers.choice import Choices

from tests.support.providers import ChangedKernel, case, wrong_lse
from tests.support.ranks import Rank, this_rank

DELAY_S = 0.02
NO_ROOM = {
    # Which draws fail on which rank: the first is for the check, and rank 0 makes another one to take times.
    "no room for the check on rank 0": (0, 0),
    "no room for the check on rank 1": (1, 0),
    "no room to take times": (0, 1),
}


class SpentKernel(ChangedKernel):
    """Right once, and out of memory ever after: it passes the check and fails while it is timed."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        if self.calls == 1:
            raise torch.OutOfMemoryError("no room for a second workspace")
        return super().__call__(q, k, v, scale)


def tables(rank: Rank) -> dict[str, tuple[AttentionProvider, ...]]:
    """Kernels by name of the test; places mean the same on both ranks, as they do in a release."""
    first = rank.rank == 0
    return {
        # Each rank's own measurement would prefer another one.
        "opposite times": (
            ChangedKernel("a", delay_s=DELAY_S if first else 0),
            ChangedKernel("b", delay_s=0 if first else DELAY_S),
        ),
        "missing on one rank": (ChangedKernel("a", delay_s=DELAY_S), ChangedKernel("b", takes=first)),
        "wrong on one rank": (ChangedKernel("a", delay_s=DELAY_S), CpuFlash() if first else wrong_lse()),
        "wrong on both in turn": (CpuFlash() if first else wrong_lse(), wrong_lse() if first else CpuFlash()),
        "none on one rank": (ChangedKernel("a", takes=first), ChangedKernel("b", takes=first)),
        "fails as it is timed": (
            SpentKernel("a") if first else ChangedKernel("a"),
            ChangedKernel("b", delay_s=DELAY_S),
        ),
        "all fail as they are timed": (SpentKernel("a"), SpentKernel("b")),
        **{name: (ChangedKernel("a"), ChangedKernel("b")) for name in NO_ROOM},
        "after all that": (ChangedKernel("a"), ChangedKernel("b", takes=False)),
    }


def failing_draw(failing: int) -> mock.Mock:
    """``draw``, out of memory the given time that it is called."""
    real = trials.draw

    def draw(*arguments: object) -> object:
        if replacement.call_count == failing + 1:
            raise torch.OutOfMemoryError("no room for another q, k and v\nand more lines")
        return real(*arguments)  # type: ignore[arg-type]

    replacement = mock.Mock(side_effect=draw)
    return replacement


def main() -> None:
    rank = this_rank()
    mesh = rank.group.mesh(Plan(ring=rank.world_size))
    for name, providers in tables(rank).items():
        table = Choices(providers, torch.device("cpu"), TimesCache(None, {}))
        unlucky, failing = NO_ROOM.get(name, (None, 0))
        replacement = failing_draw(failing) if rank.rank == unlucky else trials.draw
        with mock.patch.object(trials, "draw", replacement):
            rank.facts[name] = table.get(case(), mesh).name
        before = rank.group.transport.sent_bytes
        table.get(case(), mesh)
        rank.facts[f"{name}: bytes of a second look"] = rank.group.transport.sent_bytes - before
    rank.facts["reports"] = NOTES.reports()
    rank.facts["parts"] = NOTES.parts()
    rank.finish()


if __name__ == "__main__":
    main()
