"""Plans: parsing, the order of process groups, and which plans a model allows."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tutti.backend.errors import BadPlan
from tutti.backend.parallel.plan import (
    COMPRESSIONS,
    SCHEDULES,
    Plan,
    choose_plan,
    compressed,
    factor_plans,
    legal_plans,
    split_compression,
)


def test_a_plan_reads_back_what_it_prints() -> None:
    plan = Plan(cfg=2, ring=3, ulysses=4)
    assert str(plan) == "cfg=2,ring=3,ulysses=4"
    assert Plan.parse(str(plan)) == plan
    assert plan.world_size == 24


@pytest.mark.parametrize("text", ["ulysses=2,ring=1", "ring=1,ulysses=2", " ulysses = 2 "])
def test_axes_come_in_any_order_and_missing_ones_are_one(text: str) -> None:
    assert Plan.parse(text) == Plan(ulysses=2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "ulysses",
        "ulysses=",
        "ulysses=0",
        "ulysses=-2",
        "ulysses=2.0",
        "ulysses=²",
        "tensor=2",
        "ring=1,ring=2",
        "ulysses=99999",
    ],
)
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(BadPlan):
        Plan.parse(text)


@pytest.mark.parametrize("degree", [0, -1, True, 2.0, "2"])
def test_a_degree_is_a_whole_number_of_at_least_one(degree: object) -> None:
    with pytest.raises(BadPlan, match="ulysses"):
        Plan(ulysses=degree)  # type: ignore[arg-type]


def test_factor_plans_lists_every_split_once_in_a_fixed_order() -> None:
    whole = [(1, 1, 12), (1, 2, 6), (1, 3, 4), (1, 4, 3), (1, 6, 2), (1, 12, 1)]
    halves = [(2, 1, 6), (2, 2, 3), (2, 3, 2), (2, 6, 1)]
    assert [(plan.cfg, plan.ring, plan.ulysses) for plan in factor_plans(12)] == whole + halves
    assert {plan.cfg for plan in factor_plans(3)} == {1}, "three ranks have no halves"
    assert factor_plans(1) == [Plan()]
    with pytest.raises(BadPlan):
        factor_plans(0)


def test_legal_plans_are_those_whose_ulysses_degree_divides_the_heads() -> None:
    assert [(plan.cfg, plan.ulysses) for plan in legal_plans(4, 24)] == [(1, 4), (1, 2), (1, 1), (2, 2), (2, 1)]
    assert [(plan.cfg, plan.ulysses) for plan in legal_plans(4, 6)] == [(1, 2), (1, 1), (2, 2), (2, 1)]
    assert [(plan.cfg, plan.ulysses) for plan in legal_plans(2, 1)] == [(1, 1), (2, 1)]
    assert [plan.ulysses for plan in legal_plans(5, 24)] == [1]


def test_auto_takes_the_largest_legal_ulysses_degree() -> None:
    assert choose_plan(None, 4, 24) == Plan(ulysses=4)
    assert choose_plan(None, 4, 2) == Plan(ring=2, ulysses=2)
    assert choose_plan(None, 1, 24) == Plan()


@pytest.mark.parametrize(
    ("world_size", "num_heads", "chosen"),
    [
        (2, 24, Plan(cfg=2)),
        (4, 24, Plan(cfg=2, ulysses=2)),
        (8, 2, Plan(cfg=2, ring=2, ulysses=2)),
        (3, 24, Plan(ulysses=3)),
        (1, 24, Plan()),
    ],
)
def test_auto_gives_two_branches_a_half_of_the_group_each(world_size: int, num_heads: int, chosen: Plan) -> None:
    assert choose_plan(None, world_size, num_heads, branches=2) == chosen
    assert choose_plan(None, world_size, num_heads, branches=1).cfg == 1


def test_a_legal_request_is_taken_as_it_is() -> None:
    assert choose_plan(Plan(ring=4), 4, 24) == Plan(ring=4)
    assert choose_plan(Plan(cfg=2, ring=2), 4, 24, branches=1) == Plan(cfg=2, ring=2)


@pytest.mark.parametrize(
    ("requested", "says"),
    [
        (Plan(ulysses=4), "divides the model's 6 heads"),
        (Plan(ulysses=2), "4 rank"),
        (Plan(cfg=4), "guidance has two branches"),
    ],
)
def test_an_illegal_request_is_refused_with_the_legal_plans_named(requested: Plan, says: str) -> None:
    with pytest.raises(BadPlan, match=says) as caught:
        choose_plan(requested, 4, 6)
    assert "cfg=1,ring=2,ulysses=2; cfg=1,ring=4,ulysses=1" in str(caught.value)


def test_reading_plans_needs_no_torch() -> None:
    code = "import sys, tutti.backend.parallel.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_schedule_and_codec_are_part_of_a_plan_and_not_of_its_split() -> None:
    plan = Plan.parse("ring=2,ulysses=2,schedule=tokenring,codec=fp8")
    assert str(plan) == "cfg=1,ring=2,ulysses=2,schedule=tokenring,codec=fp8"
    assert plan.split == Plan(ring=2, ulysses=2)
    assert (plan.exact, plan.split.exact) == (False, True)
    assert choose_plan(plan, 4, 4) == plan
    assert choose_plan(None, 4, 4).exact, "auto takes only what is exact"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ring=2,schedule=fast", "schedule of ring"),
        ("ulysses=2,codec=zip", "codec of raw"),
        ("ulysses=2,schedule=tokenring", "there is no ring"),
        ("ring=2,codec=fp8", "no all-to-all"),
        ("ulysses=2,compression=zip", "compression of off"),
        ("compression=balanced", "no exchange to compress"),
        ("cfg=2,compression=small", "no exchange to compress"),
        ("ulysses=2,codec=fp8,compression=fast", "each is an exchange of its own"),
        ("ring=2,schedule=tokenring,compression=fast", "no keys and values go from hop to hop"),
    ],
)
def test_a_schedule_codec_or_compression_without_anything_to_do_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadPlan, match=why):
        Plan.parse(text)


@pytest.mark.parametrize(
    ("text", "rest", "compression"),
    [
        ("", "", ""),
        ("auto", "auto", ""),
        ("compression=balanced", "", "balanced"),
        ("auto,compression=small", "auto", "small"),
        (" ulysses = 2 , compression = fast , schedule=ring", " ulysses = 2 , schedule=ring".strip(), "fast"),
        ("ulysses=2,compression=off", "ulysses=2", "off"),
    ],
)
def test_a_compression_is_read_with_or_without_degrees(text: str, rest: str, compression: str) -> None:
    assert split_compression(text) == (rest, compression)


@pytest.mark.parametrize("text", ["compression=zip", "compression=", "compression", "compression=off,compression=off"])
def test_a_compression_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadPlan, match="compression"):
        split_compression(text)


@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
def test_a_compression_is_put_on_a_plan_that_exchanges_something_and_left_off_any_other(compression: str) -> None:
    for plan in (Plan(ulysses=2), Plan(ring=2), Plan(cfg=2, ring=2, ulysses=2)):
        assert plan.exchanges
        assert compressed(plan, compression).compression == (compression or "off")
        assert compressed(plan, compression).split == plan
    for plan in (Plan(), Plan(cfg=2)):
        assert not plan.exchanges
        assert compressed(plan, compression) == plan


def test_a_plan_whose_own_codec_forbids_the_compression_is_refused_rather_than_changed() -> None:
    with pytest.raises(BadPlan, match="each is an exchange of its own"):
        compressed(Plan(ulysses=2, codec="fp8"), "balanced")
    named = Plan(ulysses=2, compression="small")
    assert compressed(named, "") == named
    assert compressed(named, "off").exact


def test_compression_is_part_of_a_plan_and_not_of_its_split() -> None:
    plan = Plan.parse("ring=2, ulysses=2, compression=balanced, schedule=prefetch-2")
    assert str(plan) == "cfg=1,ring=2,ulysses=2,schedule=prefetch-2,compression=balanced"
    assert Plan.parse(str(plan)) == plan
    assert plan.split == Plan(ring=2, ulysses=2)
    assert (plan.exact, plan.split.exact) == (False, True)
    assert choose_plan(plan, 4, 4) == plan
    assert choose_plan(None, 4, 4).compression == "off"
    assert Plan.parse("ulysses=2,compression=off") == Plan(ulysses=2), "the default, written out"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_differences_go_by_the_schedules_that_hop(schedule: str, compression: str) -> None:
    text = f"ring=2,schedule={schedule},compression={compression}"
    if compression == "off" or schedule in ("ring", "prefetch-2", "bidirectional"):
        assert Plan.parse(text).compression == compression
    else:
        with pytest.raises(BadPlan, match="go from hop to hop"):
            Plan.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ulysses=2,compression=zip", "compression of off, auto, fast, balanced, small: 'zip'"),
        ("ulysses=2,compression=", "compression of off"),
        ("ulysses=2,compression=fast,compression=fast", "appears twice"),
        ("cfg=2,compression=fast", "no exchange to compress"),
        ("compression=small", "no exchange to compress"),
        ("ulysses=2,codec=int8,compression=fast", "each is an exchange of its own"),
    ],
)
def test_a_compression_without_anything_to_do_or_beside_another_codec_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadPlan, match=why):
        Plan.parse(text)
