"""What does a setting do to the pictures? The same held-out prompts and noise under several settings, against one rank in float32.

Each setting runs in a daemon of its own, with as many CPU ranks as its plan has. 28 steps of euler, guidance 3.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from ...backend.assets.files import AUTOENCODER, MODELS_FOLDER
from ..report import Figure, argument_parser, finish
from .grid import write_grid
from .judgement import (
    DRAWN,
    accuracy_figures,
    distance_figures,
    drawn_scenes,
    exchange_figure,
    gain_figure,
    look_at,
    loss_figure,
    reconstruction_figure,
)
from .pictures import Autoencoder
from .prompts import prompt_set
from .sampling import sample_prompts
from .settings import EXCHANGES, PAIRS, Setting, settings_of

BENCHMARK: Final = "quality"
OF_EXCHANGES: Final = "quality of exchanges"
"""The benchmark's name with ``--exchanges``, which has promises of its own."""
PROMPTS: Final = 200


def measure(models: Path, settings: list[Setting], count: int, grid: Path | None) -> list[Figure]:
    """All figures; the first setting is the reference."""
    autoencoder, prompts = Autoencoder(models / AUTOENCODER), prompt_set(count)
    drawn = drawn_scenes(prompts)
    ceiling = look_at(DRAWN, autoencoder.encode(drawn), prompts, autoencoder)
    sampled = [sample_prompts(models, setting, prompts) for setting in settings]
    shown = [
        look_at(setting.name, one.latents, prompts, autoencoder) for setting, one in zip(settings, sampled, strict=True)
    ]
    if grid is not None:
        write_grid(grid, prompts, drawn, shown)
    figures = [reconstruction_figure(ceiling, drawn)]
    figures += [figure for one in (ceiling, *shown) for figure in accuracy_figures(one, prompts)]
    figures += [
        figure for one in shown[1:] for figure in (*distance_figures(one, shown[0]), loss_figure(one, shown[0]))
    ]
    by_name = {one.name: one for one in shown}
    figures += [
        gain_figure(by_name[one], by_name[other], shown[0])
        for one, other in PAIRS
        if one in by_name and other in by_name
    ]
    return figures + [
        exchange_figure(setting.name, one.exchanged_bytes / count)
        for setting, one in zip(settings[1:], sampled[1:], strict=True)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--setting", action="append", type=_readable, default=[], metavar="NAME:plan=PLAN,dtype=DTYPE",
        help="compare this with one rank in float32; may be given several times, such as 'two:plan=ulysses=2,dtype=BF16'; "
        "a baseline= or a preset= takes the place of the plan's compression",
    )  # fmt: skip
    parser.add_argument(
        "--exchanges",
        action="store_true",
        help="compare the presets with what others send, each on two ranks in float32",
    )
    parser.add_argument("--models", type=Path, default=MODELS_FOLDER, help="models folder with the demo model's files")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help=f"how many, at least 2 (default: {PROMPTS})")
    parser.add_argument(
        "--grid", type=Path, metavar="FILE", help="write a PNG with the first prompts under every setting"
    )
    options = parser.parse_args(arguments)
    if options.prompts < 2:
        parser.error("take at least 2 prompts, one of each kind")
    try:
        settings = settings_of(options.setting, EXCHANGES if options.exchanges else ())
    except ValueError as error:
        parser.error(str(error))
    benchmark = OF_EXCHANGES if options.exchanges else BENCHMARK
    return finish(benchmark, measure(options.models, settings, options.prompts, options.grid), options)


def _readable(text: str) -> str:
    """A setting's text, if it can be read: so that argparse says what is wrong."""
    try:
        Setting.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


if __name__ == "__main__":
    sys.exit(main())
