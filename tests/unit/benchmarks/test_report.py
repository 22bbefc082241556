"""Figures, their table and JSON lines, and the check against promised figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tutti.benchmarks import report
from tutti.benchmarks.report import Figure, Spread, Target, argument_parser, finish, read_targets, table

FIGURE = Figure(case="ulysses=2", metric="ratio", spread=Spread.of([1.0, 3.0, 2.0]), unit="x", baseline="stock")


def target(**changes: object) -> Target:
    values = {
        "benchmark": "b",
        "case": "ulysses=2",
        "metric": "ratio",
        "comparison": "<=",
        "value": 2.0,
        "promised": "docs",
    }
    return Target(**{**values, **changes})  # type: ignore[arg-type]


def test_a_spread_is_the_median_with_its_percentiles() -> None:
    assert Spread.of([5.0]) == Spread(p20=5.0, p50=5.0, p80=5.0)
    assert Spread.of([4.0, 0.0, 1.0, 3.0, 2.0, 5.0]) == Spread(p20=1.0, p50=2.5, p80=4.0)
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


@pytest.mark.parametrize(("comparison", "value"), [("<=", 2.0), (">=", 2.0), ("<=", 3.0), (">=", 1.0)])
def test_a_promise_that_is_kept_has_no_shortfall(comparison: str, value: float) -> None:
    assert target(comparison=comparison, value=value).shortfall([FIGURE]) is None


@pytest.mark.parametrize(("comparison", "value"), [("<=", 1.99), (">=", 2.01)])
def test_a_promise_that_is_not_kept_says_what_was_measured(comparison: str, value: float) -> None:
    assert "measured 2" in (target(comparison=comparison, value=value).shortfall([FIGURE]) or "")


def test_a_promise_that_was_not_measured_is_not_kept() -> None:
    assert "not measured" in (target(case="ring=2").shortfall([FIGURE]) or "")


def test_a_comparison_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="<= or >="):
        target(comparison="<")


def test_every_row_of_the_targets_file_is_well_formed() -> None:
    assert [row.case for row in read_targets("scaling")] == ["ulysses=2", "ulysses=2"]
    assert read_targets("no such benchmark") == []


def test_check_decides_the_exit_code_and_names_what_falls_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "targets.toml").write_text(
        '[[target]]\nbenchmark = "b"\ncase = "ulysses=2"\nmetric = "ratio"\ncomparison = "<="\nvalue = 1.0\npromised = "docs"\n'
    )
    monkeypatch.setattr(report, "read_targets", lambda benchmark: read_targets(benchmark, tmp_path / "targets.toml"))
    assert finish("b", [FIGURE], argument_parser("A question.").parse_args([])) == 0
    assert finish("b", [FIGURE], argument_parser("A question.").parse_args(["--check"])) == 1
    assert "NOT REACHED  ulysses=2: ratio <= 1 (docs): measured 2" in capsys.readouterr().out
    assert finish("other", [FIGURE], argument_parser("A question.").parse_args(["--check"])) == 0


def test_json_lines_are_appended_one_per_figure(tmp_path: Path) -> None:
    file = tmp_path / "figures.jsonl"
    options = argument_parser(None).parse_args(["--json", str(file)])
    one = Figure.one(case="c", metric="m", value=7, unit="MB")
    finish("b", [FIGURE, one], options)
    finish("b", [one], options)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 3
    first = lines[0]
    assert (first["benchmark"], first["case"], first["metric"], first["value"]) == ("b", "ulysses=2", "ratio", 2.0)
    assert (first["p20"], first["p80"], first["unit"], first["baseline"], first["ratio"]) == (
        1.4,
        2.6,
        "x",
        "stock",
        2.0,
    )
    assert lines[1]["ratio"] is None
    assert all(line["machine"] and line["commit"] for line in lines)


def test_the_table_has_one_aligned_row_per_figure() -> None:
    lines = table([FIGURE]).splitlines()
    assert len(lines) == 3
    assert lines[2].split() == ["ulysses=2", "ratio", "2", "1.4", "2.6", "x"]
