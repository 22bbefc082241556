"""The worker group on real gloo ranks: broadcasts, the control vector, uneven shares, and the staged transport."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tutti.backend.parallel.group import CONTROL_WORDS

from tests.distributed.group_ranks import DTYPES, qkv
from tests.support.parity import relative_error
from tests.support.ranks import RankResult, run_ranks

pytestmark = pytest.mark.timeout(180)

SHARES = {
    1: [("one rank", "ulysses=1", [9])],
    3: [
        ("ulysses 3 is no divisor, ring 3", "ring=3", [5, 0, 2]),
        ("ring 3, all on the last", "ring=3", [0, 0, 6]),
        ("ring 3, one each", "ring=3", [1, 1, 1]),
    ],
    4: [
        ("ring 4", "ring=4", [3, 1, 4, 1]),
        ("2x2", "ring=2,ulysses=2", [3, 1, 4, 2]),
        ("2x2, an idle rank", "ring=2,ulysses=2", [3, 0, 0, 0]),
        ("ulysses 4", "ulysses=4", [7, 1, 0, 3]),
    ],
}
Ranks = tuple[int, str | None, list[RankResult]]

SETTINGS = [(1, None), (3, None), (4, None), (4, "gloo-host-staged")]


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    world_size, transport = request.param
    shares = [{"name": name, "plan": plan, "shares": lengths} for name, plan, lengths in SHARES[world_size]]
    arguments: dict[str, Any] = {"shares": shares, "transport": transport}
    folder = tmp_path_factory.mktemp("group") / "ranks"
    return world_size, transport, run_ranks("tests.distributed.group_ranks", world_size, folder, arguments)


def test_the_asked_transport_is_used(ranks: Ranks) -> None:
    _, transport, results = ranks
    assert {result.facts["transport"] for result in results} == {transport or "gloo"}


def test_a_broadcast_overwrites_every_ranks_tensor_whatever_its_dtype(ranks: Ranks) -> None:
    world_size, _, results = ranks
    for dtype in DTYPES:
        for src in range(world_size):
            value = src % 2 if dtype is torch.bool else src + 1
            for result in results:
                assert result.tensors[f"broadcast {dtype} {src}"].eq(value).all()
    assert {result.facts["broadcast scalar"] for result in results} == {world_size - 1}


def test_every_rank_gets_every_ranks_control_vector(ranks: Ranks) -> None:
    world_size, _, results = ranks
    expected = torch.arange(CONTROL_WORDS) + 1000 * torch.arange(world_size)[:, None]
    assert all(torch.equal(result.tensors["control"], expected) for result in results)
    assert all(len(result.facts["refused control vectors"]) == 3 for result in results)


def test_attention_over_uneven_shares_is_exact(ranks: Ranks) -> None:
    world_size, _, results = ranks
    for name, _, shares in SHARES[world_size]:
        q, k, v = (x.double().transpose(1, 2) for x in qkv(sum(shares)))
        expected = ((q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v).transpose(1, 2).flatten(2)
        for result in results:
            assert relative_error(result.tensors[name], expected) <= 2e-6, name


def test_a_plan_of_another_size_is_refused_with_the_plans_of_the_group(ranks: Ranks) -> None:
    world_size, _, results = ranks
    assert all(f"cfg=1,ring={world_size},ulysses=1" in result.facts["refused mesh"] for result in results)
