"""The warm-start benchmark measures what was promised, under the name that was promised, round by round."""

from __future__ import annotations

import pytest
from tutti.benchmarks import warm_start
from tutti.benchmarks.report import read_targets


@pytest.mark.parametrize(("warm_s", "reached"), [([2.0, 3.0, 2.0], True), ([5.0, 6.0, 5.0], False)])
def test_the_promise_is_checked_against_the_median_of_the_rounds(warm_s: list[float], reached: bool) -> None:
    figures = warm_start.figures_of([12.0, 12.0, 12.0], warm_s)
    (target,) = read_targets(warm_start.BENCHMARK)
    assert (target.shortfall(figures) is None) == reached


def test_nothing_to_race_is_an_error() -> None:
    with pytest.raises(ValueError, match="argument 2 is"):
        warm_start.figures_of([1.0], [])
