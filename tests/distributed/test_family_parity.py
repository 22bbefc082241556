"""Every family against stock ComfyUI's own network: what the documents announce, call by call and plan by plan."""

from __future__ import annotations

import pytest

from tests.support.families import ROWS
from tests.support.family_parity import PLANS, Comparison, compare
from tests.support.parity import FP32_TOLERANCE
from tests.support.stock import needs_comfyui

pytestmark = [needs_comfyui, pytest.mark.comfy, pytest.mark.timeout(400)]


@pytest.fixture(scope="module", params=ROWS)
def comparison(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    family, rows = ROWS[request.param]
    return compare(family, rows, tmp_path_factory.mktemp(request.param))


def test_every_call_under_every_plan_gives_comfyuis_velocity(comparison: Comparison) -> None:
    assert {key: error for key, error in comparison.errors.items() if error > FP32_TOLERANCE} == {}
    assert {plan for plan, _ in comparison.errors} == {plan for plans in PLANS.values() for plan in plans}


def test_compiled_blocks_give_it_too(comparison: Comparison) -> None:
    assert comparison.not_compiled == {}
    assert comparison.graphs > 0
    assert comparison.compiled
    assert {call: error for call, error in comparison.compiled.items() if error > FP32_TOLERANCE} == {}


def test_every_check_fails_when_a_rank_drops_what_it_was_sent(comparison: Comparison) -> None:
    assert comparison.controls
    assert {key: error for key, error in comparison.controls.items() if error <= 100 * FP32_TOLERANCE} == {}


def test_all_ranks_hold_identical_bits(comparison: Comparison) -> None:
    assert comparison.identical
