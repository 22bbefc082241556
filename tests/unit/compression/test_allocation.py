"""Bits go to the layers that change most, as few as the budget allows, and no layer is left behind."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tutti.backend.compression.allocation import BITS, BUDGET, CEILING, LADDER, LOSS, allocate
from tutti.backend.compression.channel import LEAST_ERROR, MOST_ERROR, payload_bytes
from tutti.backend.compression.codecs import CODECS
from tutti.backend.compression.state import MatrixShape, ResidualState, StateForm

SIZES = st.dictionaries(st.integers(0, 63), st.floats(LEAST_ERROR, MOST_ERROR), min_size=1, max_size=64)
ROUNDING = 1e-9
"""Of sums of squares in another order."""


def bits(chosen: Mapping[int, str]) -> float:
    return sum(BITS[name] for name in chosen.values())


def error(sizes: Mapping[int, float], chosen: Mapping[int, str]) -> float:
    """Of all groups together."""
    return math.sqrt(sum((size * LOSS[chosen[group]]) ** 2 for group, size in sizes.items()) / len(sizes))


def test_the_ladder_climbs_in_bits_and_each_bit_brings_less_than_the_one_before() -> None:
    """Which is what taking the greatest gain first relies on."""
    assert all(not CODECS[name].is_key for name in LADDER)
    assert [LOSS[name] for name in LADDER] == sorted((LOSS[name] for name in LADDER), reverse=True)
    gains = [(LOSS[few] ** 2 - LOSS[many] ** 2) / (BITS[many] - BITS[few]) for few, many in itertools.pairwise(LADDER)]
    assert min(BITS[many] - BITS[few] for few, many in itertools.pairwise(LADDER)) > 0
    assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize("name", LADDER)
def test_a_codec_takes_the_bits_that_it_is_said_to_take_and_little_more_for_scales(name: str) -> None:
    shape = MatrixShape(rows=1088, heads=24, head_dim=128)
    numbers = shape.rows * shape.channels
    assert 1 <= 8 * payload_bytes(CODECS[name], [shape], torch.bfloat16) / numbers / BITS[name] < 1.07


@pytest.mark.parametrize("name", LADDER)
def test_what_a_codec_is_said_to_lose_of_a_gaussian_residual_is_what_it_loses(name: str) -> None:
    shape = MatrixShape(rows=256, heads=4, head_dim=128)
    state = ResidualState(shape, torch.float32, torch.device("cpu"), StateForm())
    x = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    value = x
    for codec, sent in ((CODECS["raw"], torch.zeros_like(x)), (CODECS[name], x)):
        payload = torch.empty(codec.payload_bytes(shape, x.dtype), dtype=torch.uint8)
        value = codec.encode(sent, state, payload)
    assert float((value - x).norm() / x.norm()) == pytest.approx(LOSS[name], rel=0.02)


@pytest.mark.parametrize(
    ("current", "lost", "chosen"),
    [
        ("quaternary", 0.01, "binary"),
        ("quaternary", 0.034, "ternary"),
        ("quaternary", 0.05, "quaternary"),
        ("quaternary", 0.06, "int4"),
        ("binary", 0.6, "int8"),
        ("int8", 0.0006, "ternary"),
        ("int8", 5.0, "int8"),
    ],
)
def test_a_layer_alone_gets_the_fewest_bits_within_the_budget(current: str, lost: float, chosen: str) -> None:
    assert allocate({7: lost / LOSS[current]}, 0.05) == {7: chosen}


def test_a_layer_that_changes_much_gets_more_bits_than_one_that_does_not_and_the_other_way_round() -> None:
    assert allocate({0: 0.3, 1: 0.01}) == {0: "int4", 1: "binary"}
    assert allocate({0: 0.01, 1: 0.3}) == {0: "binary", 1: "int4"}


def test_layers_that_change_alike_share_what_the_budget_leaves() -> None:
    """Two bits everywhere would lose 7 %, four bits everywhere 2.4 %: some get these, some those."""
    sizes = dict.fromkeys(range(20), 0.2)
    chosen = allocate(sizes)
    assert set(chosen.values()) == {"quaternary", "int4"}
    assert 0.95 * BUDGET < error(sizes, chosen) <= BUDGET
    assert bits(chosen) < 0.85 * 20 * BITS["int4"], "the control: what the same bits for all would take"


def test_one_restless_layer_does_not_hide_among_quiet_ones() -> None:
    sizes = {0: 0.4, **dict.fromkeys(range(1, 57), 0.01)}
    binary = dict.fromkeys(sizes, "binary")
    assert error(sizes, binary) < BUDGET, "the control: all of them together could do with one bit"
    assert allocate(sizes) == {**binary, 0: "int4"}


@given(SIZES)
def test_the_budget_and_the_ceiling_hold_wherever_the_ladder_reaches(sizes: dict[int, float]) -> None:
    chosen = allocate(sizes)
    assert chosen.keys() == sizes.keys()
    for group, name in chosen.items():
        assert name == LADDER[-1] or sizes[group] * LOSS[name] <= CEILING * BUDGET
    assert set(chosen.values()) == {LADDER[-1]} or error(sizes, chosen) <= BUDGET * (1 + ROUNDING)


@given(st.lists(st.floats(0.005, 1.0), min_size=1, max_size=4))
def test_nothing_cheaper_by_more_than_the_last_step_keeps_within_the_budget(sizes: list[float]) -> None:
    of = dict(enumerate(sizes))
    cheapest = min(
        (
            bits(dict(enumerate(names)))
            for names in itertools.product(LADDER, repeat=len(sizes))
            if error(of, dict(enumerate(names))) <= BUDGET
            and all(size * LOSS[name] <= CEILING * BUDGET for size, name in zip(sizes, names, strict=True))
        ),
        default=None,
    )
    assert cheapest is None or bits(allocate(of)) < cheapest + max(
        BITS[many] - BITS[few] for few, many in itertools.pairwise(LADDER)
    )


@given(SIZES, st.randoms(use_true_random=False))
def test_the_order_in_which_layers_became_known_does_not_matter(sizes: dict[int, float], chance: object) -> None:
    """Ranks share the numbers and, with what each of them measured first, could differ in nothing else."""
    shuffled = list(sizes.items())
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert allocate(dict(shuffled)) == allocate(sizes)
