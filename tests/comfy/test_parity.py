"""The promise: the same workflow, over our loader, gives the latent that stock ComfyUI gives, by every plan, and goes the way it should."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.comfy.rig import STEPWISE, WHOLE, Stock, prompt, succeed
from tests.support import daemon, workflows
from tests.support.comfyui import ComfyServer
from tests.support.parity import FP32_TOLERANCE, relative_error

PATHS = {"sample": WHOLE, "evaluate": STEPWISE}
PLANS = {
    "one_rank": ("ulysses=1,ring=1", 1),
    "ulysses_2": ("ulysses=2,ring=1", 2),
    "ring_2": ("ulysses=1,ring=2", 2),
    "ulysses_2_ring_2": ("ulysses=2,ring=2", 4),
    "ring_4": ("ulysses=1,ring=4", 4),
    "ulysses_4": ("ulysses=4,ring=1", 4),
    "cfg_2": ("cfg=2", 2),
    "cfg_2_ring_2": ("cfg=2,ring=2", 4),
}


@dataclass(frozen=True)
class Running:
    """A daemon with the plan under test."""

    plan: str


@pytest.fixture(scope="module", params=PLANS)
def plan(request: pytest.FixtureRequest, models: Path, comfy_state_dir: Path) -> Iterator[Running]:
    text, ranks = PLANS[request.param]
    with daemon.running(models, comfy_state_dir, ranks=ranks, plan=text):
        yield Running(text)


@pytest.mark.parametrize("case", workflows.PARITY_CASES, ids=lambda case: case.name)
def test_our_model_gives_the_latent_of_stock_comfyui(
    stock: Stock, comfy: ComfyServer, plan: Running, case: workflows.Case
) -> None:
    expected = stock.latents(case.build)
    run = succeed(comfy, prompt(case.build))
    errors = [relative_error(ours, theirs) for ours, theirs in zip(comfy.latents(run), expected, strict=True)]
    assert max(errors) <= FP32_TOLERANCE, errors
    other = PATHS["evaluate" if case.path == "sample" else "sample"]
    assert PATHS[case.path] in run.all_texts, run.all_texts
    assert other not in run.all_texts, run.all_texts


def test_easycache_does_skip_calls_in_the_case_above(stock: Stock) -> None:
    """Otherwise the case would only show that a wrapper does no harm."""
    stock.latents(workflows.EVALUATE_CASES["easycache"])
    lines = [line for line in stock.server.log_text().splitlines() if "EasyCache - skipped" in line]
    assert lines
    assert "skipped 0/" not in lines[-1]
