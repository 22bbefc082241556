"""Train the demo model again, from nothing to the shipped files. Stopped, it goes on where it was.

python -m tutti.benchmarks.demo_model.train [--work DIR] [--out DIR] [--short] [--threads N]
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from ...backend.assets import files
from ...backend.demo.terminal import Terminal
from ...backend.setup.folders import data_folder
from .autoencoder import psnr_db, to_input, train_autoencoder
from .export import write_assets
from .flow import new_transformer, train_flow
from .latents import make_latents
from .scenes import draw, random_scene

Curves = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Every number of a training."""

    autoencoder_steps: int = 1500
    autoencoder_batch: int = 8
    unseen: int = 64
    """Scenes on which the autoencoder is judged."""
    scenes: int = 12_000
    """Of 128 x 128."""
    larger: tuple[tuple[int, int, int], ...] = ((192, 128, 1500), (128, 192, 1500), (192, 192, 1500), (256, 256, 1500))
    """(width, height, scenes)"""
    tokens: int = 2048
    """Image tokens in a batch."""
    small_steps: int = 5000
    larger_steps: int = 3500
    guidance_steps: tuple[int, ...] = (700, 700)
    """Of each round: a round begins with the rate high again, from the last one's average."""
    compiled: bool = True
    """Of the first phase only, which has one size: every further one would be compiled anew."""


SHORT: Final = Recipe(
    autoencoder_steps=6, unseen=4, scenes=32, larger=((192, 128, 8),), tokens=512, small_steps=4, larger_steps=2, guidance_steps=(2, 2), compiled=False
)  # fmt: skip
"""Seconds: shows that the recipe runs, trains nothing."""


def run(recipe: Recipe, work: Path, out: Path) -> dict[str, float]:
    """Train everything that is not trained yet in ``work``, and write the files to ``out``; returns what was measured."""
    terminal, began_s = Terminal(), time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    curves: Curves = {}
    autoencoder, curves["autoencoder"] = train_autoencoder(
        work, steps=recipe.autoencoder_steps, batch=recipe.autoencoder_batch
    )
    autoencoder.requires_grad_(False)
    measured = {"autoencoder PSNR on unseen scenes, dB": round(psnr_db(autoencoder, _unseen(recipe.unseen)), 2)}
    terminal.line(
        f"  autoencoder: {measured['autoencoder PSNR on unseen scenes, dB']} dB on {recipe.unseen} unseen scenes"
    )
    transformer = _train_transformer(recipe, autoencoder, work, curves)
    write_assets(transformer, autoencoder, out)
    _write_record(recipe, curves, measured, out)
    terminal.line(f"  Done after {time.monotonic() - began_s:.0f} s in this run. The files: {out}")
    return measured


def _train_transformer(recipe: Recipe, autoencoder: Any, work: Path, curves: Curves) -> Any:
    small = make_latents(autoencoder, work, width=128, height=128, count=recipe.scenes)
    network, curves["flow, 128"] = train_flow(
        "flow", new_transformer(), [small], work, steps=recipe.small_steps, tokens=recipe.tokens, rate=1.0, compiled=recipe.compiled
    )  # fmt: skip
    larger = [make_latents(autoencoder, work, width=w, height=h, count=count) for w, h, count in recipe.larger]
    every = [small, *larger]
    network.requires_grad_(True)
    network, curves["flow, sizes"] = train_flow(
        "sizes", network, every, work, steps=recipe.larger_steps, tokens=recipe.tokens, rate=0.5, compiled=False
    )  # fmt: skip
    student = network
    for number, steps in enumerate(recipe.guidance_steps, start=1):
        phase = "guidance" if number == 1 else f"guidance {number}"
        begun = new_transformer()
        begun.load_state_dict(student.state_dict())
        student, curves[phase] = train_flow(
            phase, begun, every, work, steps=steps, tokens=recipe.tokens, rate=0.5, compiled=False, teacher=network
        )
    return student


def _unseen(count: int) -> torch.Tensor:
    dice = random.Random("unseen scenes")
    pictures = [torch.from_numpy(draw(random_scene(dice), 128, 128).copy()) for _ in range(count)]
    return to_input(torch.stack(pictures))


def _write_record(recipe: Recipe, curves: Curves, measured: dict[str, float], out: Path) -> None:
    """The curve and the numbers, beside the files they belong to."""
    with (out / "curve.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["phase", "step", "loss"])
        rows.writerows((phase, *point) for phase, points in curves.items() for point in points)
    record = {"recipe": asdict(recipe), "measured": measured, "torch": torch.__version__, "machine": platform.machine()}
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where unfinished training is kept (default: in the data folder)")
    parser.add_argument("--out", type=Path, help="where the files go (default: into this package)")
    parser.add_argument(
        "--short", action="store_true", help="a few steps of everything, into --out: a test of the recipe, not a model"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile")
    options = parser.parse_args(arguments)
    if options.short and options.out is None:
        parser.error(
            "say with --out where the files of a short run go: they are no model, and must not replace the one that ships"
        )
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = SHORT if options.short else Recipe()
    if options.no_compile:
        recipe = replace(recipe, compiled=False)
    work = options.work or data_folder() / ("demo_model_short" if options.short else "demo_model")
    run(recipe, work, options.out or files.FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
