"""FLUX.1 on real gloo ranks: every plan and every awkward length gives the velocity of the plain float64 reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import write_tiny_flux
from tests.support.flux_calls import FluxCall
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.ranks import RankResult, run_ranks
from tests.support.reference_flux import reference_velocities

HIDDEN = 512  # 4 heads, so that ulysses 4 is legal

CALLS = {
    "64 image and 16 text tokens": FluxCall(height=16, width=16, tokens=16),
    "63 and 15 tokens": FluxCall(height=14, width=18, tokens=15),
    "57 and 3 tokens": FluxCall(height=6, width=38, tokens=3),
    "5 and 1 tokens": FluxCall(height=2, width=10, tokens=1),
    "one token each": FluxCall(height=2, width=2, tokens=1),
    "batch 3": FluxCall(height=10, width=14, tokens=7, batch=3),
    "no pooled vector, no guidance": FluxCall(height=8, width=8, tokens=5, pooled_dim=0, guidance=None),
}
ALL = tuple(CALLS)
FEW = ("63 and 15 tokens", "one token each", "batch 3")
CASES = {
    1: {"ulysses=1": ALL},
    2: {"ulysses=2": ALL, "ring=2": ALL},
    4: {"ulysses=4": FEW, "ulysses=2,ring=2": FEW, "ring=4": FEW},
}
CONTROL = "63 and 15 tokens"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny_flux(path, hidden=HIDDEN, depth=2, depth_single=2)
    return path


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> dict[str, torch.Tensor]:
    return reference_velocities(checkpoint, CALLS)


@pytest.fixture(scope="module")
def results(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[RankResult]]:
    """Every case, one start of the ranks per group size."""
    done = {}
    for world_size, plans in CASES.items():
        cases = [
            {"name": f"{plan}: {name}", "plan": plan, "call": CALLS[name].to_json()}
            for plan, names in plans.items()
            for name in names
        ]
        if world_size > 1:
            cases += [
                {
                    "name": f"{plan}: dropped",
                    "plan": plan,
                    "call": CALLS[CONTROL].to_json(),
                    "dropped_by": world_size - 1,
                }
                for plan in plans
            ]
        folder = tmp_path_factory.mktemp("ranks") / str(world_size)
        done[world_size] = run_ranks(
            "tests.distributed.flux_ranks", world_size, folder, {"checkpoint": str(checkpoint), "cases": cases}
        )
    return done


@pytest.mark.parametrize(
    ("world_size", "plan", "name"),
    [
        (world_size, plan, name)
        for world_size, plans in CASES.items()
        for plan, names in plans.items()
        for name in names
    ],
)
def test_every_plan_gives_the_reference_velocity(
    world_size: int, plan: str, name: str, results: dict[int, list[RankResult]], reference: dict[str, torch.Tensor]
) -> None:
    for result in results[world_size]:
        assert relative_error(result.tensors[f"{plan}: {name}"], reference[name]) <= FP32_TOLERANCE


@pytest.mark.parametrize(
    ("world_size", "plan"), [(size, plan) for size, plans in CASES.items() if size > 1 for plan in plans]
)
def test_the_check_fails_when_one_rank_drops_its_exchange(
    world_size: int, plan: str, results: dict[int, list[RankResult]], reference: dict[str, torch.Tensor]
) -> None:
    errors = [relative_error(result.tensors[f"{plan}: dropped"], reference[CONTROL]) for result in results[world_size]]
    assert min(errors) > 100 * FP32_TOLERANCE


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_hold_identical_bits(world_size: int, results: dict[int, list[RankResult]]) -> None:
    first, *others = results[world_size]
    for name, tensor in first.tensors.items():
        for other in others:
            assert torch.equal(tensor, other.tensors[name]), name
