"""The benchmark of slow links: its arithmetic, who takes part, and a short run of two ranks in namespaces of their own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tutti.backend.compression.policy import PRESETS
from tutti.backend.errors import InternalError
from tutti.backend.parallel.plan import Plan
from tutti.benchmarks import links, namespaces
from tutti.benchmarks.baselines import BASELINES
from tutti.benchmarks.links import RAW, Entry, Trajectory, Work, entries, figures_of, main, plans

WORK = Work(tokens=10, heads=4, head_dim=8, layers=3, steps=28)
SHORT = (
    "--ranks", "2", "--steps", "3", "--rounds", "1", "--points", "16", "--tokens", "16", "--heads", "2", "--head-dim", "16",
    "--layers", "2", "--only", "balanced", "cf-2bit", "stale",
)  # fmt: skip


def test_computation_is_as_long_as_the_rings_bytes_over_the_point() -> None:
    assert WORK.ring_bytes(4) == 3 * 3 * 2 * (10 * 4 * 8) * 2
    assert WORK.compute_s(4, 8 * WORK.ring_bytes(4), 16) == pytest.approx(1 / 16), "the bytes take one second"


def test_everybody_takes_part_and_every_plan_is_of_its_group() -> None:
    assert {entry.contestant for entry in entries(4)} == {RAW, *PRESETS, *BASELINES}
    assert set(links.PRESETS) == set(PRESETS)
    assert set(links.BASELINES) == set(BASELINES)
    for ranks in (2, 4):
        assert {Plan.parse(entry.plan).world_size for entry in entries(ranks)} == {ranks}
        assert {entry.plan for entry in entries(ranks) if entry.contestant in BASELINES} == {plans(ranks)[0]}
    assert len(plans(4)) == 3
    assert {entry.contestant for entry in entries(2, ["small"])} == {RAW, "small"}
    assert {entry.plan for entry in entries(4, rings=True) if entry.contestant == RAW} == set(plans(4))
    assert {entry.plan for entry in entries(4, rings=True) if entry.contestant != RAW} == {plans(4)[0]}


def trajectory(step_s: float, waited_s: float = 1.0, hideable_s: float = 3.75) -> Trajectory:
    return Trajectory(
        step_s=step_s, sent_bytes=100, waited_s=waited_s, alone_s=4.0, hideable_s=hideable_s, cores_busy=0.5
    )


def test_the_slowest_rank_counts() -> None:
    answers = [
        {"trajectory_s": 2.0, "bytes": 10, "waited_s": 0.5, "alone_s": 1.0, "hideable_s": 0.625, "cpu_s": 1.0},
        {"trajectory_s": 4.0, "bytes": 10, "waited_s": 0.25, "alone_s": 1.0, "hideable_s": 0.75, "cpu_s": 2.0},
    ]
    found = Trajectory.of(answers, made=4, steps=28)
    assert (found.step_s, found.sent_bytes, found.cores_busy) == (1.0, 70, 0.75)
    assert (found.hidden, found.hidden_of_hideable) == (0.5, 0.8), "of the rank that stood still the longest"


def test_gains_are_told_within_a_round_over_both_uncompressed_plans() -> None:
    ours, ring, ulysses = Entry("balanced", "ring=2"), Entry(RAW, "ring=2"), Entry(RAW, "ulysses=2")
    found = {
        (point, entry): [trajectory(step_s * slowness) for slowness in (1, 10)]
        for point in ("16:1", links.NO_LIMIT)
        for entry, step_s in ((ours, 1.0), (ring, 6.0), (ulysses, 4.0))
    }
    figures = {(figure.case, figure.metric): figure for figure in figures_of(found, 2, [0.75, 0.95])}
    case = "2 ranks, balanced, ring=2, 16:1"
    gain = figures[case, "uncompressed ring / this"]
    assert (gain.spread.p20, gain.value, gain.spread.p80, gain.baseline) == (6, 6, 6, "raw, ring=2")
    assert figures[case, "uncompressed ulysses / this"].value == 4
    assert figures[case, "hidden share of transfers"].value == 0.75
    assert figures[case, "hidden / what attention can hide"].value == 0.8
    assert figures["2 ranks, balanced, ring=2, no limit", "time / raw time"].value == pytest.approx(1 / 6)
    assert figures["2 ranks", "goodput / limit of a link"].value == pytest.approx(0.85)
    assert figures["2 ranks, balanced, ring=2", "bytes of a trajectory, per rank"].value == 100


def figures_in(path: Path) -> dict[tuple[str, str], float]:
    lines = map(json.loads, path.read_text().splitlines())
    return {(line["case"], line["metric"]): line["value"] for line in lines}


def check_bytes(figures: dict[tuple[str, str], float]) -> None:
    """Of two layers of three calls, with a peer: exact, whatever the links are."""
    sent = {case: value for (case, metric), value in figures.items() if metric.startswith("bytes of a trajectory")}
    assert sent["2 ranks, raw, ring=2"] == sent["2 ranks, stale, ring=2"] == 3 * 2 * 2 * 16 * 32 * 2
    assert sent["2 ranks, balanced, ring=2"] < sent["2 ranks, cf-2bit, ring=2"] < sent["2 ranks, raw, ring=2"]


@pytest.mark.slow
def test_two_ranks_race_over_links_of_the_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if reason := namespaces.why_not():
        pytest.skip(
            f"no network namespaces for this process ({reason}): run `sudo .venv/bin/python -m pytest tests/unit/benchmarks/test_links.py`"
        )
    assert main([*SHORT, "--mbps", "4", "--json", str(tmp_path / "figures")]) == 0
    assert "by the kernel" in capsys.readouterr().out
    figures = figures_in(tmp_path / "figures")
    check_bytes(figures)
    # Emptying the bucket comes for free; beyond it nothing is faster than the link. What else runs here makes it slower.
    assert 0.2 < figures["2 ranks", "goodput / limit of a link"] < 1.1
    assert figures["2 ranks, raw, ring=2, 16:1", "time of a step"] > 1000 * 8 * 2 * 2 * 16 * 32 * 2 / 4e6 / 1.5
    assert own_namespaces() == [], "nothing is left"


@pytest.mark.slow
def test_without_root_the_links_are_emulated_and_the_table_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SHORT, "--emulated", "--json", str(tmp_path / "figures")]) == 0
    assert "EMULATED (asked for)" in capsys.readouterr().out
    check_bytes(figures_in(tmp_path / "figures"))


def own_namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(f"tutti-{os.getpid()}-")]


def test_nothing_is_left_where_a_link_cannot_be_made() -> None:
    if reason := namespaces.why_not():
        pytest.skip(
            f"no network namespaces for this process ({reason}): run `sudo .venv/bin/python -m pytest tests/unit/benchmarks/test_links.py`"
        )
    with pytest.raises(InternalError, match="failed"), namespaces.shaped_links(1, -1.0):
        raise AssertionError("A link of a negative rate came up.")
    assert own_namespaces() == []
