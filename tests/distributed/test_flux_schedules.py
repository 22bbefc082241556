"""FLUX.1 on four real gloo ranks by every schedule: the velocity of the plain float64 reference, and identical bits on every rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tutti.backend.parallel.plan import SCHEDULES

from tests.support.checkpoints import write_tiny_flux
from tests.support.flux_calls import FluxCall
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.ranks import RankResult, run_ranks
from tests.support.reference_flux import reference_velocities

pytestmark = pytest.mark.timeout(180)

WORLD_SIZE = 4
PLANS = [f"{split},schedule={schedule}" for split in ("ring=4", "ring=2,ulysses=2") for schedule in SCHEDULES]
CALLS = {
    "63 and 15 tokens": FluxCall(height=14, width=18, tokens=15),
    "one token each": FluxCall(height=2, width=2, tokens=1),
    "batch 3": FluxCall(height=10, width=14, tokens=7, batch=3),
}
CONTROL = "63 and 15 tokens"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny_flux(path, hidden=512, depth=1, depth_single=1)
    return path


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> dict[str, torch.Tensor]:
    return reference_velocities(checkpoint, CALLS)


@pytest.fixture(scope="module")
def results(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RankResult]:
    cases = [
        {"name": f"{plan}: {name}", "plan": plan, "call": call.to_json()}
        for plan in PLANS
        for name, call in CALLS.items()
    ]
    cases += [
        {"name": f"{plan}: dropped", "plan": plan, "call": CALLS[CONTROL].to_json(), "dropped_by": 1} for plan in PLANS
    ]
    arguments = {"checkpoint": str(checkpoint), "cases": cases}
    folder = tmp_path_factory.mktemp("ranks") / "ranks"
    return run_ranks("tests.distributed.flux_ranks", WORLD_SIZE, folder, arguments)


@pytest.mark.parametrize("plan", PLANS)
def test_every_schedule_gives_the_reference_velocity(
    plan: str, results: list[RankResult], reference: dict[str, torch.Tensor]
) -> None:
    for name, expected in reference.items():
        for result in results:
            assert relative_error(result.tensors[f"{plan}: {name}"], expected) <= FP32_TOLERANCE, name


@pytest.mark.parametrize("plan", PLANS)
def test_the_check_fails_when_one_rank_drops_its_exchange(
    plan: str, results: list[RankResult], reference: dict[str, torch.Tensor]
) -> None:
    for result in results:
        assert relative_error(result.tensors[f"{plan}: dropped"], reference[CONTROL]) > 100 * FP32_TOLERANCE


def test_all_ranks_hold_identical_bits(results: list[RankResult]) -> None:
    first, *others = results
    for name, tensor in first.tensors.items():
        for other in others:
            assert torch.equal(tensor, other.tensors[name]), name
