"""How much do queries, keys, values and attention outputs change from step to step?

The demo model on one rank in this process, float32, 28 steps of euler, a few held-out prompts; image tokens, as text hardly changes. A residual codec sends differences between
steps: what it can save depends on how small they are beside the values, and on whether they are small in every step.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ...backend.assets.files import MODELS_FOLDER, TRANSFORMER
from ...backend.demo.options import STEPS
from ..quality.prompts import prompt_set
from ..report import Figure, argument_parser, finish
from .plot import Panel, Point, write_plot
from .profile import FLUX, FLUX_COSINES, FLUX_END, FLUX_MIDDLE, FLUX_START, Curve
from .recorder import KINDS, Row, over_layers
from .trajectory import record

BENCHMARK: Final = "dynamics"
PROMPTS: Final = 6
_FLUX_NAME: Final = "FLUX.1, published"


def changes_of(rows: Sequence[Row], kind: str) -> list[float]:
    """``||difference|| / ||x||`` at steps 1, 2, ..., averaged over layers."""
    return over_layers(rows, kind, lambda row: row.change)


def cosines_of(rows: Sequence[Row], kind: str) -> list[float]:
    """Cosines between neighbouring steps, averaged over layers."""
    return over_layers(rows, kind, lambda row: row.cosine)


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """Each kind's curve in numbers."""
    figures = []
    for kind in KINDS:
        curve, cosines = Curve.of(changes_of(rows, kind)), cosines_of(rows, kind)
        values = {
            "step difference / norm, first three steps": curve.start,
            "step difference / norm, middle": curve.middle,
            "step difference / norm, last three steps": curve.end,
            "cosine between steps, lowest": min(cosines),
            "bathtub (1 = yes)": float(curve.is_bathtub),
        }
        figures += [Figure.one(case=kind, metric=metric, value=value, unit="") for metric, value in values.items()]
    return figures


def comparison(rows: Sequence[Row]) -> list[str]:
    """Keys and values beside the published profile, in sentences."""
    lines = [f"{_FLUX_NAME}: start {FLUX.start:.2f}, middle {FLUX.middle:.2f}, end {FLUX.end:.2f}, a bathtub"]
    for kind in ("key", "value"):
        curve = Curve.of(changes_of(rows, kind))
        shape = "a bathtub" if curve.is_bathtub else "no bathtub"
        lines.append(f"{kind}: start {curve.start:.2f}, middle {curve.middle:.2f}, end {curve.end:.2f}, {shape}")
        found = curve.differences_from(FLUX)
        lines.append(f"  differs from it: {'; '.join(found)}" if found else "  like it, within a factor of 1.5")
    return lines


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every layer, kind and step."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["layer", "kind", "step", "norm", "step_difference_over_norm", "cosine_to_step_before"])
        for row in rows:
            change, cosine = ("" if value is None else f"{value:.6g}" for value in (row.change, row.cosine))
            table.writerow([row.layer, row.kind, row.step, f"{row.norm:.6g}", change, cosine])


def panels_of(rows: Sequence[Row], steps: int) -> list[Panel]:
    """Differences and cosines over steps, with what was published of FLUX.1 in as many steps as dots."""
    changes = {kind: list[Point](enumerate(changes_of(rows, kind), 1)) for kind in KINDS}
    cosines = {kind: list[Point](enumerate(cosines_of(rows, kind), 1)) for kind in KINDS}
    last = steps - 1
    ends: list[Point] = [*enumerate(FLUX_START, 1), *enumerate(FLUX_END, steps - len(FLUX_END))]
    dots: list[Point] = [*ends, (steps / 2 + 3, FLUX_MIDDLE)]
    cosine_dots: list[Point] = list(zip((1, steps / 2, last), FLUX_COSINES, strict=True))
    highest = max(value for _, value in [*dots, *(point for line in changes.values() for point in line)])
    lowest = min(value for line in cosines.values() for _, value in line)
    return [
        Panel(title="step difference / norm", lines=changes, dots=dots, dots_name=_FLUX_NAME, low=0.0, high=1.05 * highest, steps=steps),
        Panel(title="cosine to the step before", lines=cosines, dots=cosine_dots, dots_name=_FLUX_NAME, low=min(0.9, lowest), high=1.0, steps=steps),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--models", type=Path, default=MODELS_FOLDER, help="models folder with the demo model's files")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help=f"how many (default: {PROMPTS})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the trajectory, at least 10 (default: {STEPS})")
    parser.add_argument("--csv", type=Path, default=Path("dynamics.csv"), metavar="FILE", help="every layer and step")
    parser.add_argument("--plot", type=Path, default=Path("dynamics.png"), metavar="FILE", help="the curves")
    options = parser.parse_args(arguments)
    if options.steps < 10:
        parser.error("take at least 10 steps: a curve has two ends and a middle")
    rows, _ = record(options.models / TRANSFORMER, prompt_set(options.prompts), options.steps)
    write_csv(options.csv, rows)
    write_plot(options.plot, panels_of(rows, options.steps))
    code = finish(BENCHMARK, figures_of(rows), options)
    print("\n".join(["", *comparison(rows)]))
    return code


if __name__ == "__main__":
    sys.exit(main())
