"""The benchmark of text lengths compares what it says, under the name that was promised."""

from __future__ import annotations

import pytest
from tutti.benchmarks import text_lengths
from tutti.benchmarks.report import read_targets


@pytest.mark.parametrize(("symbolic_s", "reached"), [([1.01, 1.0, 1.02], True), ([1.2, 1.3, 1.2], False)])
def test_the_promise_is_checked_against_the_median_of_the_rounds(symbolic_s: list[float], reached: bool) -> None:
    times = {"static": [1.0, 1.0, 1.0], "symbolic": symbolic_s, "bucket": [1.1, 1.1, 1.1]}
    figures = text_lengths.figures_of(times, {"static": 2, "symbolic": 4, "bucket": 2})
    (target,) = read_targets(text_lengths.BENCHMARK)
    assert (target.shortfall(figures) is None) == reached


def test_each_contestant_ends_with_the_length_that_is_timed() -> None:
    ends = {name: lengths[-1] for name, lengths in text_lengths.CONTESTANTS.items()}
    assert ends == {"static": text_lengths.LENGTH, "symbolic": text_lengths.LENGTH, "bucket": text_lengths.BUCKET}
    assert text_lengths.BUCKET > text_lengths.LENGTH
    assert text_lengths.LENGTH not in text_lengths.MET_BEFORE
