"""The benchmarks of the exchange and of the kernels run, and measure what was promised under the names that were promised."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.parallel.plan import CODECS
from tutti.benchmarks import exchange, kernels
from tutti.benchmarks.report import Figure, read_targets

MBPS = 2.0
LATENCY_MS = 3.0


@pytest.fixture(scope="module")
def figures() -> dict[tuple[str, str], Figure]:
    """Of two rounds with a few tokens."""
    settings = {"rounds": 2, "mbps": MBPS, "latency_ms": LATENCY_MS, "tokens": 3, "heads": 2}
    return {(figure.case, figure.metric): figure for figure in exchange.figures_of(exchange.run_ranks(settings))}


def test_every_promised_figure_is_measured(figures: dict[tuple[str, str], Figure]) -> None:
    targets = read_targets(exchange.BENCHMARK)
    assert targets
    for target in targets:
        assert "not measured" not in (target.shortfall(list(figures.values())) or "")


def test_bytes_are_counted_and_charged_as_the_link_would(figures: dict[tuple[str, str], Figure]) -> None:
    row = {"raw": 4 * 256, "fp8": 3 * 132 + 256, "int8": 3 * 132 + 256, "fp8-all": 4 * 132, "int8-all": 4 * 132}
    for codec in CODECS:
        sent = figures[codec, "bytes sent by a rank"].value
        assert sent == 3 * row[codec], "three tokens, one head of two, four tensors"
        took_ms = figures[codec, "both all-to-alls"].value
        assert took_ms >= 2 * LATENCY_MS + sent * 8 / MBPS / 1000


def test_the_error_of_raw_is_nothing_and_of_the_others_something(figures: dict[tuple[str, str], Figure]) -> None:
    assert ("raw", "bytes / raw") not in figures
    for codec in CODECS[1:]:
        assert 0.001 < figures[codec, "relative rms error, worst tensor"].value < 0.04


def test_the_kernels_are_timed_against_a_copy() -> None:
    found = kernels.measure(tokens=2, rounds=1, device=torch.device("cpu"))
    shares = [figure for figure in found if figure.baseline == "copy"]
    assert {figure.case for figure in shares} >= {
        "lse merge", "pack heads", "quantise and pack, fp8", "encode residual, ternary", "decode residual, int4",
    }  # fmt: skip
    assert all(figure.value > 0 for figure in found)
