"""Which ranks a plan puts together: every rank once on each axis, and process groups created in one order everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tutti.backend.parallel.mesh import Axis, SequenceMesh, build_meshes
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.transport import DirectTransport


def built(rank: int, world_size: int) -> tuple[dict[Plan, SequenceMesh], list[tuple[int, ...]]]:
    """The meshes of one rank, and the groups it created, in order."""
    created: list[tuple[int, ...]] = []

    def new_group(ranks: list[int]) -> Any:
        created.append(tuple(ranks))
        return tuple(ranks)

    return build_meshes(rank, world_size, torch.device("cpu"), DirectTransport("gloo"), new_group), created


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_all_ranks_create_the_same_groups_in_the_same_order(world_size: int) -> None:
    orders = {tuple(built(rank, world_size)[1]) for rank in range(world_size)}
    assert len(orders) == 1


def test_two_branches_get_neighbouring_halves() -> None:
    plan = Plan(cfg=2, ring=2, ulysses=2)
    meshes = [built(rank, 8)[0][plan] for rank in range(8)]
    assert [mesh.sequence.ranks for mesh in meshes] == [(0, 1, 2, 3)] * 4 + [(4, 5, 6, 7)] * 4
    assert [mesh.rank for mesh in meshes] == [0, 1, 2, 3] * 2
    assert [mesh.cfg.ranks for mesh in meshes] == [(0, 4), (1, 5), (2, 6), (3, 7)] * 2
    assert [mesh.cfg.index for mesh in meshes] == [0] * 4 + [1] * 4
    assert meshes[5].ulysses.ranks == (4, 5)
    assert meshes[5].ring.ranks == (5, 7)
    assert {mesh.world_size for mesh in meshes} == {4}


@pytest.mark.parametrize("world_size", [1, 2, 4, 6])
def test_every_rank_finds_itself_on_every_axis_of_every_plan(world_size: int) -> None:
    for rank in range(world_size):
        for plan, mesh in built(rank, world_size)[0].items():
            axes: dict[str, Axis] = {"cfg": mesh.cfg, "ring": mesh.ring, "ulysses": mesh.ulysses}
            for name, axis in axes.items():
                assert axis.ranks[axis.index] == rank
                assert axis.size == getattr(plan, name)
            assert mesh.sequence.ranks[mesh.rank] == rank
