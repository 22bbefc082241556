"""``tutti demo``: a sheet of pictures from what ships."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="what to draw; may be given several times (default: a dozen examples)"
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR",
        help="where demo.png goes, or a file that ends in .png (default: this folder)",
    )  # fmt: skip
    parser.add_argument(
        "--plan", default="auto", metavar="PLAN", help="how a model call is split: auto, or such as ulysses=2,ring=1 (default: auto)"
    )  # fmt: skip
    parser.add_argument(
        "--codec", default="off", metavar="NAME", help="how the ranks' exchange is compressed: off is what there is (default: off)"
    )  # fmt: skip
    parser.add_argument(
        "--size", default="128", metavar="WxH", help="pixels of each picture, such as 192x128 (default: 128, a square)"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="how many ranks (default: every GPU, or 2 on a CPU)")
    parser.add_argument("--steps", type=int, default=28, metavar="N", help="sampler steps (default: 28)")
    parser.add_argument(
        "--guidance", type=float, default=2.5, metavar="G", help="how closely to keep to the prompt, 1 to 5 (default: 2.5)"
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="of the first picture's noise (default: 7)")


def run(options: argparse.Namespace) -> int:
    """Run it."""
    from ..demo.options import PROMPTS, DemoOptions

    checked = DemoOptions(
        prompts=tuple(options.prompt or PROMPTS),
        out=options.out,
        plan=options.plan,
        codec=options.codec,
        ranks=options.ranks,
        steps=options.steps,
        size=options.size,
        guidance=options.guidance,
        seed=options.seed,
    )
    from ..demo.run import run_demo  # torch takes seconds: a mistake is told before

    return run_demo(checked)
