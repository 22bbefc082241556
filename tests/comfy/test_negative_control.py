"""The parity test can fail: with one rank that loses what it receives, the same check on the same workflow says no."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.comfy.rig import STEPWISE, WHOLE, Stock, plain, prompt, succeed
from tests.support import daemon
from tests.support.comfyui import ComfyServer
from tests.support.parity import FP32_TOLERANCE, relative_error

FAULTS = Path(__file__).with_name("faults")
WAYS = {WHOLE: "euler", STEPWISE: "euler_ancestral"}


@pytest.mark.parametrize(("deaf", "fails"), [("1", True), ("none", False)], ids=["one rank deaf", "no fault"])
@pytest.mark.parametrize("plan", ["ulysses=2,ring=1", "ulysses=1,ring=2"])
def test_the_comparison_fails_when_one_rank_loses_its_exchange(
    stock: Stock, comfy: ComfyServer, models: Path, comfy_state_dir: Path, plan: str, deaf: str, fails: bool
) -> None:
    environment = {"PYTHONPATH": str(FAULTS), "TUTTI_TEST_DEAF_RANK": deaf}
    with daemon.running(models, comfy_state_dir, ranks=2, plan=plan, environment=environment):
        for way, sampler in WAYS.items():
            (expected,) = stock.latents(plain(sampler_name=sampler))
            run = succeed(comfy, prompt(plain(sampler_name=sampler)))
            assert way in run.all_texts
            error = relative_error(comfy.latents(run)[0], expected)
            assert (error > 100 * FP32_TOLERANCE) if fails else (error <= FP32_TOLERANCE)
