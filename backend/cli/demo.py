"""``tutti demo``: a sheet of pictures from what ships."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    from ..assets.advice import GUIDANCE
    from ..demo.options import CODECS, SEED, SIZE, STEPS
    from ..parallel.plan import COMPRESSIONS

    least, usual, most = GUIDANCE
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
        "--codec", default="off", metavar="NAME",
        help=f"what the ranks' all-to-all is encoded with, approximately: {', '.join(CODECS)} (default: off, which is exact)",
    )  # fmt: skip
    parser.add_argument(
        "--compression", default="off", metavar="NAME",
        help=f"draw everything twice, the second time with a compressed exchange, approximately: {', '.join(COMPRESSIONS)} "
        "(default: off, which is exact)",
    )  # fmt: skip
    parser.add_argument(
        "--size",
        default=SIZE,
        metavar="WxH",
        help=f"pixels of each picture, such as 192x128 (default: {SIZE}, a square)",
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="how many ranks (default: every GPU, or 2 on a CPU)")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"sampler steps (default: {STEPS})")
    parser.add_argument(
        "--guidance", type=float, default=usual, metavar="G", help=f"how closely to keep to the prompt, {least:g} to {most:g} (default: {usual})"
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=SEED, metavar="N", help=f"of the first picture's noise (default: {SEED})"
    )


def run(options: argparse.Namespace) -> int:
    """Run it."""
    from ..demo.options import PROMPTS, DemoOptions

    checked = DemoOptions(
        prompts=tuple(options.prompt or PROMPTS),
        out=options.out,
        plan=options.plan,
        codec=options.codec,
        compression=options.compression,
        ranks=options.ranks,
        steps=options.steps,
        size=options.size,
        guidance=options.guidance,
        seed=options.seed,
    )
    from ..demo.run import run_demo  # torch takes seconds: a mistake is told before

    return run_demo(checked)
