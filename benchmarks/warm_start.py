"""How long does the first call of a network wait for compilation, and how long after a restart?

One rank on the CPU, the small FLUX of the step benchmark, in a process of its own each time: with an empty folder for compiled code, and again
with what the first process left there. What is timed is the first call; a warm one still has to be traced.

    python -m tutti.benchmarks.warm_start [--json FILE] [--check] [--rounds N]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Final

from .report import Figure, Spread, argument_parser, finish

BENCHMARK: Final = "warm start"
CASE: Final = "flux-512, one CPU rank"
TIMEOUT_S: Final = 600


def first_call_s(folder: str) -> float:
    """Of a process that finds its compiled code in ``folder``, or leaves it there."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"{__package__}.warm_start", "--first-call"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    return float(done.stdout.split()[-1])


def measure_first_call() -> float:
    """In this process, which has compiled nothing yet."""
    import torch

    from ..backend.parallel.compile_modes import BLOCKS
    from ..backend.parallel.plan import Plan
    from .step.contestants import our_step
    from .step.networks import MODELS, draw_call, draw_network
    from .step.peers import fake_mesh

    model, device = MODELS["flux-512"], torch.device("cpu")
    mesh, _ = fake_mesh(Plan(), device)
    step = our_step(model, draw_network(model, device), draw_call(model, device), mesh, BLOCKS)
    started_s = time.perf_counter()
    step()
    return time.perf_counter() - started_s


def figures_of(cold_s: Sequence[float], warm_s: Sequence[float]) -> list[Figure]:
    """Both times, and their ratio round by round."""
    ratios = [cold / warm for cold, warm in zip(cold_s, warm_s, strict=True)]
    return [
        Figure(case=CASE, metric="first call, nothing compiled before", spread=Spread.of(cold_s), unit="s"),
        Figure(case=CASE, metric="first call after a restart", spread=Spread.of(warm_s), unit="s"),
        Figure(case=CASE, metric="cold / warm", spread=Spread.of(ratios), unit="x", baseline="cold"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="cold and warm starts (default: 3)")
    parser.add_argument(
        "--first-call", action="store_true", help="time one first call in this process, and print its seconds"
    )
    options = parser.parse_args(arguments)
    if options.first_call:
        print(measure_first_call())
        return 0
    cold_s, warm_s = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="tutti-compiled-") as folder:
            cold_s.append(first_call_s(folder))
            warm_s.append(first_call_s(folder))
    return finish(BENCHMARK, figures_of(cold_s, warm_s), options)


if __name__ == "__main__":
    sys.exit(main())
