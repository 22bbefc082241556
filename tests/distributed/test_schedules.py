"""Every schedule on real gloo ranks: exact at every length, with the promised transfers, each of which matters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from tutti.backend.parallel.plan import SCHEDULES, Plan
from tutti.backend.parallel.providers import CpuFlash

from tests.support.attention_cases import SCALE, AttentionCase
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.ranks import RankResult, run_ranks

pytestmark = pytest.mark.timeout(180)

CASES = {
    "13 text and 50 image tokens": AttentionCase(lengths={"text": 13, "image": 50}),
    "63 tokens of one stream, batch 3": AttentionCase(lengths={"image": 63}, batch=3),
    "streams shorter than the ring": AttentionCase(lengths={"text": 1, "image": 2}),
    "one token": AttentionCase(lengths={"image": 1}),
    "image of a joint call": AttentionCase(lengths={"text": 7, "image": 21}, seen="image"),
    "text of a joint call, shorter than the ring": AttentionCase(lengths={"text": 2, "image": 21}, seen="text"),
    "two heads": AttentionCase(lengths={"image": 11}, heads=2),
    "bfloat16": AttentionCase(lengths={"text": 5, "image": 30}, dtype="bfloat16"),
    "float64": AttentionCase(lengths={"text": 5, "image": 30}, dtype="float64"),
}
ONE_HEAD = AttentionCase(lengths={"image": 11}, heads=1)
"""Where the ring's ranks keep all heads."""
SHARES = {2: [(5, 2), (0, 6)], 3: [(5, 0, 2), (0, 0, 6)], 4: [(3, 1, 4, 1), (0, 3, 0, 2), (0, 0, 0, 6)]}
SPLITS = {2: ["ring=2"], 3: ["ring=3"], 4: ["ring=4", "ring=2,ulysses=2"]}
SETTINGS = [(2, None), (3, None), (4, None), (3, "gloo-host-staged")]
LOST_IN = "13 text and 50 image tokens"
TOLERANCE = {"float32": FP32_TOLERANCE, "float64": 1e-12}
"""Float64 shows that log-sum-exps travel and merge in the precision of their kernel: float32 anywhere would leave 1e-7."""


def plans(world_size: int) -> list[str]:
    return [f"{split},schedule={schedule}" for split in SPLITS[world_size] for schedule in SCHEDULES]


def cases(world_size: int, plan: Plan) -> dict[str, AttentionCase]:
    shares = {f"shares {shares}": AttentionCase(shares=shares) for shares in SHARES[world_size]}
    return {**CASES, **shares, **({"one head": ONE_HEAD} if plan.ulysses == 1 else {})}


def transfers(plan: Plan) -> int:
    """Ring transfers that each rank takes part in, in one attention."""
    return {"allgather": 1, "tokenring": plan.ring}.get(plan.schedule, plan.ring - 1)


def entries(world_size: int) -> Iterator[dict[str, Any]]:
    for text in plans(world_size):
        plan = Plan.parse(text)
        for name, case in cases(world_size, plan).items():
            yield {"name": f"{text}: {name}", "plan": text, "case": case.to_json(), "lost": None, "inference": True}
        for lost in range(transfers(plan)):
            case = CASES[LOST_IN].to_json()
            yield {"name": f"{text}: lost {lost}", "plan": text, "case": case, "lost": lost, "inference": False}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def run(world_size: int, transport: str | None) -> list[RankResult]:
        arguments = {"cases": list(entries(world_size)), "transport": transport}
        folder = tmp_path_factory.mktemp("schedules") / "ranks"
        return run_ranks("tests.distributed.schedule_ranks", world_size, folder, arguments)

    return run


EVERY_PLAN = pytest.mark.parametrize(
    ("world_size", "transport", "text"),
    [(world_size, transport, text) for world_size, transport in SETTINGS for text in plans(world_size)],
)


def worst_error(results: list[RankResult], text: str, name: str, case: AttentionCase) -> float:
    plan = Plan.parse(text)
    errors = []
    for rank, result in enumerate(results):
        expected = case.expected(plan, rank)
        got = case.real(result.tensors[f"{text}: {name}"], plan, rank)
        assert got.shape == expected.shape
        if expected.numel():
            errors.append(relative_error(got, expected))
    return max(errors)


@EVERY_PLAN
def test_every_schedule_is_exact_at_every_length(world_size: int, transport: str | None, text: str, ranks: Any) -> None:
    results = ranks(world_size, transport)
    for name, case in cases(world_size, Plan.parse(text)).items():
        assert worst_error(results, text, name, case) <= tolerance(case), name


def tolerance(case: AttentionCase) -> float:
    """For bfloat16: the error of one kernel over all tokens, and the rounding of the parts and of their sum (2^-9 each)."""
    if case.dtype in TOLERANCE:
        return TOLERANCE[case.dtype]
    one = Plan()
    q, k, v = (x.transpose(1, 2) for x in case.held(one, 0))
    return relative_error(CpuFlash()(q, k, v, SCALE).out.transpose(1, 2), case.expected(one, 0)) + 2 * 2**-9


@EVERY_PLAN
def test_the_check_fails_when_any_one_transfer_is_lost(
    world_size: int, transport: str | None, text: str, ranks: Any
) -> None:
    """Negative control; and no transfer is dead, or losing it would change nothing."""
    results = ranks(world_size, transport)
    for lost in range(transfers(Plan.parse(text))):
        assert worst_error(results, text, f"lost {lost}", CASES[LOST_IN]) > 100 * FP32_TOLERANCE, lost


@EVERY_PLAN
def test_every_rank_makes_the_promised_transfers(world_size: int, transport: str | None, text: str, ranks: Any) -> None:
    plan, kind = Plan.parse(text), "all_gather" if "allgather" in text else "hop"
    for name in cases(world_size, plan):
        for result in ranks(world_size, transport):
            calls = dict(result.facts[f"{text}: {name}"]["calls"])
            assert calls.pop("all_to_all", 0) == (2 if plan.ulysses > 1 else 0)
            assert calls == {kind: transfers(plan)}, name


@EVERY_PLAN
def test_every_schedule_sends_what_its_formula_says(
    world_size: int, transport: str | None, text: str, ranks: Any
) -> None:
    plan = Plan.parse(text)
    for name, case in cases(world_size, plan).items():
        for rank, result in enumerate(ranks(world_size, transport)):
            sent = result.facts[f"{text}: {name}"]["bytes"]
            assert sent.get("hop", 0) + sent.get("all_gather", 0) == ring_bytes(case, plan, rank // plan.ulysses), name


def ring_bytes(case: AttentionCase, plan: Plan, index: int) -> int:
    """Bytes that a rank at ``index`` of the ring sends in one attention."""
    partition, R = case.partition(plan).seen_by(case.seen), plan.ring
    keys = partition.chunk_lengths
    queries = [sum(partition.peers_held(place)) for place in range(R)]
    element = getattr(torch, case.dtype).itemsize
    rows = case.batch * case.heads // plan.ulysses
    token = rows * case.head_dim * element
    if plan.schedule == "allgather":
        return (R - 1) * 2 * max(keys) * token
    if plan.schedule == "tokenring":
        forward = sum(queries[index - step] * token for step in range(R - 1))
        lse = rows * max(4, element)
        back = sum(queries[index - step] * (token + lse) for step in range(1, R)) if keys[index] else 0
        return forward + back
    if plan.schedule == "bidirectional":
        heads = case.heads // plan.ulysses
        one_head = 2 * case.batch * case.head_dim * element
        clockwise = (heads - heads // 2) * sum(keys[index - hop] for hop in range(R - 1))
        counter = heads // 2 * sum(keys[(index + hop) % R] for hop in range(R - 1))
        return one_head * (clockwise + counter)
    return 2 * token * sum(keys[index - hop] for hop in range(R - 1))
