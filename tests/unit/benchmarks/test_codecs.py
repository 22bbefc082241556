"""The benchmark of payload formats: what is counted, the walks on which losses are measured, and what the closed loop makes of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from tutti.backend.compression.codecs import CODECS
from tutti.backend.compression.state import MatrixShape, ResidualState, StateForm
from tutti.benchmarks import codecs
from tutti.benchmarks.published_walk import CHANGES, SPECTRA, STEPS, changes, published_walk
from tutti.benchmarks.report import read_targets

CPU = torch.device("cpu")
FLUX = MatrixShape(rows=1088, heads=24, head_dim=128)
SMALL = MatrixShape(rows=24, heads=2, head_dim=32)


def test_every_promised_ratio_is_counted_and_kept() -> None:
    figures = [figure for name, codec in codecs.codecs().items() for figure in codecs.size_figures(name, codec, FLUX)]
    targets = [target for target in read_targets(codecs.BENCHMARK) if target.metric.startswith("bf16 / ")]
    assert len(targets) == 6
    assert not [text for target in targets if (text := target.shortfall(figures))]


def test_a_key_frame_in_full_is_most_of_what_a_hundredfold_ratio_sends() -> None:
    """The published accounts: 10.3, 6.35 and 22 for whole trajectories."""
    raw = STEPS * codecs.raw_bytes(FLUX)
    ratios = [
        raw / codecs.trajectory_bytes(CODECS[name], FLUX, key="raw") for name in ("binary", "quaternary", "low-rank")
    ]
    assert ratios == pytest.approx([10.3, 6.35, 22], rel=0.01)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_walk_changes_as_published_and_keeps_its_length(spectrum: str) -> None:
    walk = list(published_walk(40, 30, device=CPU, spectrum=spectrum))
    assert len(walk) == STEPS == 28
    shares = [float((b - a).norm() / a.norm()) for a, b in itertools.pairwise(walk)]
    assert shares == pytest.approx(list(CHANGES), rel=1e-3)
    assert [float(x.norm() / walk[0].norm()) for x in walk] == pytest.approx([1.0] * STEPS, rel=1e-3)


def test_a_walk_of_another_length_has_the_same_pace() -> None:
    assert changes(STEPS) == pytest.approx(list(CHANGES))
    assert [len(changes(steps)) for steps in (1, 2, 3, 5, 50)] == [0, 1, 2, 4, 49]
    assert (changes(9)[0], changes(9)[-1]) == pytest.approx((CHANGES[0], CHANGES[-1]))


def test_a_falling_spectrum_is_one_that_a_low_rank_can_hold() -> None:
    def missed(spectrum: str) -> float:
        first, second = published_walk(200, 180, steps=2, device=CPU, spectrum=spectrum)
        energies = torch.linalg.svdvals(second - (second * first).sum() / first.square().sum() * first).square()
        return float(energies[32:].sum() / energies.sum())

    assert missed("falling") < 0.6 * missed("white")


def test_the_closed_loop_loses_less_with_more_bits_and_nothing_raw() -> None:
    def errors(name: str) -> list[float]:
        return codecs.closed_loop_errors(
            codecs.codecs()[name], published_walk(SMALL.rows, SMALL.channels, device=CPU), SMALL
        )

    names = ("naive-1bit", "binary", "ternary", "quaternary", "int4", "int8", "raw")
    means = [sum(errors(name)) / STEPS for name in names]
    assert means == sorted(means, reverse=True)
    assert means[-1] == 0
    assert len(errors("binary")) == STEPS
    assert errors("binary")[0] == errors("key-int4")[0], "a key frame comes first"


def test_errors_do_not_grow_from_call_to_call_and_would_without_feedback() -> None:
    """The promise is the ratio of the last error to the first residual's: 1.15."""
    walk = [x.float() for x in published_walk(SMALL.rows, SMALL.channels, device=CPU)]
    errors = codecs.closed_loop_errors(CODECS["quaternary"], walk, SMALL)
    assert errors[-1] / errors[1] <= 1.15
    # The control: what was sent is the difference to the call before itself, so that nobody makes up for what was lost.
    state = ResidualState(SMALL, torch.float32, CPU, StateForm())
    codec, known, open_loop = CODECS["quaternary"], walk[0], []
    for before, x in itertools.pairwise(walk):
        CODECS["raw"].encode(
            before, state, torch.empty(CODECS["raw"].payload_bytes(SMALL, torch.float32), dtype=torch.uint8)
        )
        payload = torch.empty(codec.payload_bytes(SMALL, torch.float32), dtype=torch.uint8)
        known = known + (codec.encode(x, state, payload) - before)
        open_loop.append(float((known - x).norm() / x.norm()))
    assert open_loop[-1] / open_loop[0] > 1.15


def test_every_codec_is_timed_and_judged() -> None:
    figures = codecs.measure([SMALL], rounds=1, device=CPU)
    assert {figure.case for figure in figures} == {codecs.case_of(name, SMALL) for name in ("hash", *codecs.codecs())}
    of_small = {(target.case.partition(",")[0], target.metric) for target in read_targets(codecs.BENCHMARK)}
    assert of_small <= {(figure.case.partition(",")[0], figure.metric) for figure in figures}, (
        "what is promised is measured"
    )
    assert all(figure.value > 0 for figure in figures if figure.unit == "ms")
    shares = [figure.case for figure in figures if figure.metric.startswith("hashes")]
    assert codecs.case_of("quaternary", SMALL) in shares
    assert codecs.case_of("raw", SMALL) not in shares
