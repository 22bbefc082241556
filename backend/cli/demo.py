"""``tutti demo``: one picture from nothing."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "--out", type=Path, default=Path("demo.png"), metavar="FILE", help="where the picture goes (default: demo.png)"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="how many ranks (default: every GPU, or 2 on a CPU)")
    parser.add_argument(
        "--plan", default="", metavar="PLAN", help="such as ulysses=2,ring=1 (default: the daemon chooses)"
    )
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="sampler steps (default: 12)")


def run(options: argparse.Namespace) -> int:
    """Run it."""
    from ..demo import DemoOptions, run_demo

    return run_demo(DemoOptions(out=options.out, ranks=options.ranks, plan=options.plan, steps=options.steps))
