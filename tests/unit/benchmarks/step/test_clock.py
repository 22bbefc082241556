"""Gaps between kernels, from their begins and ends."""

from __future__ import annotations

import time

import pytest
import torch
from tutti.benchmarks.step.clock import Timeline, step_s


@pytest.mark.parametrize(
    ("intervals_us", "expected"),
    [
        ([], (0, 0.0, 0.0)),
        ([(5, 9)], (1, 0.004, 0.0)),
        ([(10, 20), (0, 5)], (2, 0.015, 0.005)),  # in any order
        ([(0, 10), (4, 6), (8, 12), (20, 21)], (4, 0.013, 0.008)),  # overlap, and one within another
        ([(0, 10), (10, 20)], (2, 0.020, 0.0)),  # back to back
    ],
)
def test_a_timeline_counts_each_moment_once(
    intervals_us: list[tuple[float, float]], expected: tuple[int, float, float]
) -> None:
    seen = Timeline.of(intervals_us)
    assert (seen.kernels, seen.busy_ms, seen.gaps_ms) == (
        expected[0],
        pytest.approx(expected[1]),
        pytest.approx(expected[2]),
    )


def test_a_step_is_timed_by_the_wall_clock_on_a_cpu() -> None:
    assert 0.01 <= step_s(lambda: time.sleep(0.01), torch.device("cpu")) < 0.1
