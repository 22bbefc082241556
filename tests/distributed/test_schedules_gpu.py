"""Every schedule with CUDA tensors: four ranks share one GPU, their transfers staged through pinned memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tutti.backend.parallel.plan import Plan

from tests.distributed.test_schedules import LOST_IN, cases, entries, plans, tolerance, transfers, worst_error
from tests.support.parity import FP32_TOLERANCE
from tests.support.ranks import RankResult, run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU: pytest tests/distributed/test_schedules_gpu.py"
    ),
    pytest.mark.timeout(300),
]

WORLD_SIZE = 4


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[RankResult]:
    arguments = {"cases": list(entries(WORLD_SIZE)), "transport": "gloo-host-staged", "device": "cuda:0"}
    folder: Path = tmp_path_factory.mktemp("schedules") / "ranks"
    return run_ranks("tests.distributed.schedule_ranks", WORLD_SIZE, folder, arguments, timeout_s=250)


@pytest.mark.parametrize("text", plans(WORLD_SIZE))
def test_every_schedule_is_exact_on_a_gpu(text: str, results: list[RankResult]) -> None:
    for name, case in cases(WORLD_SIZE, Plan.parse(text)).items():
        assert worst_error(results, text, name, case) <= tolerance(case), name


@pytest.mark.parametrize("text", plans(WORLD_SIZE))
def test_the_check_fails_when_any_one_transfer_is_lost(text: str, results: list[RankResult]) -> None:
    """Negative control."""
    for lost in range(transfers(Plan.parse(text))):
        assert worst_error(results, text, f"lost {lost}", cases(WORLD_SIZE, Plan())[LOST_IN]) > 100 * FP32_TOLERANCE
