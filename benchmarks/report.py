"""What every benchmark shares: figures with their spread, a table, JSON lines, and the check against promised figures.

A promised figure is a row of ``targets.toml``::

    [[target]]
    benchmark = "scaling"
    case = "ulysses=2"
    metric = "step time / diffusers context parallel"
    comparison = "<="
    value = 1.02
    promised = "docs/performance.md"
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGETS = Path(__file__).with_name("targets.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and the 20th and 80th percentile of some samples."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """The spread of at least one sample, percentiles interpolated linearly."""
        if not samples:
            raise ValueError("A spread needs at least one sample.")
        ordered = sorted(samples)

        def percentile(share: float) -> float:
            place = share * (len(ordered) - 1)
            low, high = math.floor(place), math.ceil(place)
            return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

        return cls(p20=percentile(0.2), p50=percentile(0.5), p80=percentile(0.8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number."""

    case: str
    metric: str
    spread: Spread
    """Its median is the value."""
    unit: str
    baseline: str | None = None
    """What a ratio compares with."""

    @classmethod
    def one(cls, *, case: str, metric: str, value: float, unit: str, baseline: str | None = None) -> Figure:
        """A number without a spread: a count, a maximum, a size."""
        return cls(
            case=case, metric=metric, spread=Spread(p20=value, p50=value, p80=value), unit=unit, baseline=baseline
        )

    @property
    def value(self) -> float:
        """The median."""
        return self.spread.p50


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One promised figure."""

    benchmark: str
    case: str
    metric: str
    comparison: str
    value: float
    promised: str
    """Where it was promised."""

    def __post_init__(self) -> None:
        if self.comparison not in ("<=", ">="):
            raise ValueError(f"Write <= or >= as the comparison of a target: got {self.comparison!r}.")

    def shortfall(self, figures: Sequence[Figure]) -> str | None:
        """Why the promise is not kept by these figures of its benchmark; ``None`` when it is."""
        promise = f"{self.case}: {self.metric} {self.comparison} {self.value:g} ({self.promised})"
        found = [figure for figure in figures if (figure.case, figure.metric) == (self.case, self.metric)]
        if not found:
            return f"{promise}: not measured in this run"
        value = found[0].value
        kept = value <= self.value if self.comparison == "<=" else value >= self.value
        return None if kept else f"{promise}: measured {value:.4g}"


def read_targets(benchmark: str, path: Path = TARGETS) -> list[Target]:
    """The promised figures of one benchmark."""
    rows: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8")).get("target", [])
    return [target for target in (Target(**row) for row in rows) if target.benchmark == benchmark]


def argument_parser(module_doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=(module_doc or "").strip().partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one JSON line per figure")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promised figure is not reached")
    return parser


def finish(benchmark: str, figures: Sequence[Figure], options: argparse.Namespace) -> int:
    """Print the table, write the JSON lines, check the promises; returns the exit code."""
    print(table(figures))
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in json_lines(benchmark, figures))
    if not options.check:
        return 0
    shortfalls = [text for target in read_targets(benchmark) if (text := target.shortfall(figures))]
    for text in shortfalls:
        print(f"NOT REACHED  {text}")
    return 1 if shortfalls else 0


def table(figures: Sequence[Figure]) -> str:
    """The figures for people."""
    rows = [("case", "metric", "p50", "p20", "p80", "unit")]
    rows += [
        (f.case, f.metric, f"{f.spread.p50:.4g}", f"{f.spread.p20:.4g}", f"{f.spread.p80:.4g}", f.unit) for f in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def json_lines(benchmark: str, figures: Sequence[Figure]) -> list[str]:
    """The figures for machines."""
    where = {"machine": machine(), "commit": commit()}
    return [
        json.dumps(
            {
                "benchmark": benchmark,
                "case": figure.case,
                "metric": figure.metric,
                "value": figure.value,
                "p20": figure.spread.p20,
                "p80": figure.spread.p80,
                "unit": figure.unit,
                "baseline": figure.baseline,
                "ratio": figure.value if figure.baseline else None,
                **where,
            }
        )
        for figure in figures
    ]


def machine() -> str:
    """The processor and how many of its cores this process may use; no host name."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    model = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model or platform.machine()}, {cores} cores"


def commit() -> str:
    """The commit of this checkout; ``unknown`` outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
