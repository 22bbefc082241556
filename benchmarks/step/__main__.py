"""What does one step cost, and what would N GPUs bring?

Without ``--shard``: real ranks. Groups of several sizes wait side by side, and in every round each contestant takes one step: our network by every plan,
eager, compiled and (on a GPU) compiled with CUDA graphs; diffusers' network on one rank, eager and compiled; diffusers' context parallelism.

With ``--shard N``: one rank's share of a group of N on a single device. Compute is measured with stand-in peers, communication is modelled for a named
link, and every figure says which of the two it is.

Ratios are medians over rounds of the ratio within a round, so that slow drifts of the machine cancel. Weights are random.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from ...backend.errors import BadPlan
from ...backend.parallel.plan import Plan, choose_plan
from ...backend.parallel.providers.from_xfuser import installed
from ..report import Figure, argument_parser, finish
from . import race, shard
from .compiling import MODES
from .links import LINKS
from .networks import MODELS, StepModel


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = _options(arguments)
    model, modes = MODELS[options.model], options.modes.split(",")
    kind = f"shard {options.shard}" if options.shard else "ranks"
    if options.shard:
        figures, notes = _measure_shard(options, model, modes)
    else:
        raced = race.Race(model=model, device=options.device, sizes=options.ranks, modes=modes, rounds=options.rounds)
        times, notes = race.run(raced)
        figures = race.figures_of(raced, times)
        notes.append(f"xfuser's USP did not run: {_why_no_xfuser(options.device)}")
    print(f"{model.says}; {options.device}")
    code = finish(benchmark_name(model.name, options.device, kind), figures, options)
    print("\n".join(f"  {note}" for note in notes))
    return code


def benchmark_name(model: str, device: str, kind: str) -> str:
    """Promised figures hold for one network on one kind of device, so each combination is a benchmark of its own."""
    return f"step {model} {device} {kind}"


def _measure_shard(
    options: argparse.Namespace, model: StepModel, modes: Sequence[str]
) -> tuple[list[Figure], list[str]]:
    if options.device == "cpu":
        torch.set_num_threads(1)
    asked = shard.Shard(
        model=model,
        device=torch.device(options.device),
        plan=options.plan,
        modes=modes,
        rounds=options.rounds,
        link=LINKS[options.link],
        gaps=options.gaps,
    )
    measured = shard.run(asked)
    return shard.figures_of(asked, measured), [*measured.notes, shard.REMARK]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argument_parser(__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="flux-dev" if on_gpu else "flux-512")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    parser.add_argument(
        "--modes", help=f"ways to compile our network, of {','.join(MODES)} (default: all that make sense)"
    )
    parser.add_argument(
        "--ranks",
        type=group_sizes,
        help="sizes of the groups, such as 1,2,4 (default: 1 and as many as there are devices)",
    )
    parser.add_argument("--shard", type=int, metavar="N", help="one rank's share of a group of N, on one device")
    parser.add_argument("--plan", help="with --shard: how the group is split (default: what auto chooses)")
    parser.add_argument("--link", choices=sorted(LINKS), default="nvlink", help="with --shard: what joins the ranks")
    parser.add_argument("--gaps", action="store_true", help="with --shard on a GPU: idle time between kernels")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (default: 15)")
    options = parser.parse_args(arguments)
    options.modes = options.modes or ("off,blocks,graphs" if options.device == "cuda" else "off,blocks")
    if unknown := set(options.modes.split(",")) - set(MODES):
        parser.error(f"choose modes of {', '.join(MODES)}: {', '.join(sorted(unknown))} is none")
    if options.gaps and (options.device != "cuda" or not options.shard):
        parser.error("--gaps needs --shard and a GPU")
    if options.device == "cpu" and "graphs" in options.modes:
        parser.error("leave graphs out of --modes: CUDA graphs need a GPU")
    if options.shard:
        try:
            asked = Plan.parse(options.plan) if options.plan else None
            options.plan = choose_plan(asked, options.shard, MODELS[options.model].heads)
        except BadPlan as error:
            parser.error(str(error))
    if options.ranks is None:
        most = torch.cuda.device_count() if options.device == "cuda" else 2
        options.ranks = sorted({1, most})
    return options


def group_sizes(text: str) -> list[int]:
    """``1,2,4``; raises ValueError, which argparse turns into a refusal."""
    sizes = sorted({int(size) for size in text.split(",")})
    if sizes[0] < 1:
        raise ValueError(text)
    return sizes


def _why_no_xfuser(device: str) -> str:
    if device != "cuda":
        return "it has no kernel for a CPU"
    if not installed():
        return "xfuser is not installed"
    return "this baseline is not built yet: it needs a machine with two GPUs and xfuser's own runtime state"


if __name__ == "__main__":
    sys.exit(main())
