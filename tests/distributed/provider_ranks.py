"""What each rank runs for test_providers: choices of attention kernels where ranks would choose differently alone."""

from __future__ import annotations

import torch
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.providers import AttentionProvider, CpuFlash, reports
from tutti.backend.parallel.providers.cache import TimesCache
from tutti.backend.parallel.providers.choice import Choices

from tests.support.providers import ChangedKernel, case, wrong_lse
from tests.support.ranks import Rank, this_rank

DELAY_S = 0.003


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
    }


def main() -> None:
    rank = this_rank()
    mesh = rank.group.mesh(Plan(ring=rank.world_size))
    for name, providers in tables(rank).items():
        table = Choices(providers, torch.device("cpu"), TimesCache(None, {}))
        rank.facts[name] = table.get(case(), mesh).name
        before = rank.group.transport.sent_bytes
        table.get(case(), mesh)
        rank.facts[f"{name}: bytes of a second look"] = rank.group.transport.sent_bytes - before
    rank.facts["reports"] = reports()
    rank.finish()


if __name__ == "__main__":
    main()
