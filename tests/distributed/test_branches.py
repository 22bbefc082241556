"""CFG parallel on real ranks: every rank gets every branch, and computes only its own."""

from __future__ import annotations

import pytest
import torch

from tests.support.ranks import RankResult, run_ranks

SHAPES = {
    "two alike": [(1, 4, 3), (1, 4, 3)],
    "unequal": [(2, 3), (5,)],
    "one": [(3,)],
    "three": [(2,), (1, 2), (4,)],
}
PLANS = {2: ("cfg=2", "ulysses=2"), 4: ("cfg=2,ulysses=2", "cfg=2,ring=2")}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=PLANS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[RankResult]:
    cases = [
        {"name": f"{plan}: {name}", "plan": plan, "shapes": shapes}
        for plan in PLANS[request.param]
        for name, shapes in SHAPES.items()
    ]
    folder = tmp_path_factory.mktemp("branches") / "ranks"
    return run_ranks("tests.distributed.branch_ranks", request.param, folder, {"cases": cases})


def test_every_rank_gets_every_branch(ranks: list[RankResult]) -> None:
    for plan in PLANS[len(ranks)]:
        for name, shapes in SHAPES.items():
            for index, shape in enumerate(shapes):
                for result in ranks:
                    answer = result.tensors[f"{plan}: {name}/{index}"]
                    assert torch.equal(answer, torch.full(shape, float(index + 1)))


def test_each_half_computes_its_own_branch_only(ranks: list[RankResult]) -> None:
    (plan,) = [plan for plan in PLANS[len(ranks)] if plan.startswith("cfg=2") and "ring" not in plan]
    half = len(ranks) // 2
    for rank, result in enumerate(ranks):
        computed = result.facts["computed"]
        own = rank // half
        assert computed[f"{plan}: two alike"] == [own]
        assert computed[f"{plan}: three"] == [own, 2], "the last one is computed by both: nobody waits at the gate"
        assert computed[f"{plan}: one"] == [0]
