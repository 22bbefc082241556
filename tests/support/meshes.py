"""A mesh of one rank: everything of :mod:`tutti.backend.parallel` without a process group."""

from __future__ import annotations

import torch
from torch.distributed import ProcessGroup
from tutti.backend.parallel.mesh import SequenceMesh, build_meshes
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.transport import DirectTransport


def single_rank_mesh() -> SequenceMesh:
    """Plan 1x1 on the CPU."""

    def no_group(ranks: list[int]) -> ProcessGroup:
        raise AssertionError(f"one rank needs no process group, asked for {ranks}")

    return build_meshes(0, 1, torch.device("cpu"), DirectTransport("gloo"), no_group)[Plan()]
