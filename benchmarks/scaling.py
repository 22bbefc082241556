"""Does splitting one FLUX step over two ranks cost anything? Against stock ComfyUI, and against diffusers' own context parallelism.

Hidden size 512, 1,024 image and 128 text tokens, fp32, CPU. In every round each contestant takes one step, while all others wait without
using the processor:

* stock ComfyUI 0.30's network with 2 threads, in its own process and environment;
* two ranks with 1 thread each, by every plan;
* diffusers' context parallelism (Ulysses 2, its default attention) on the same two ranks and the same weights. Its ring has no CPU kernel
  that gives a log-sum-exp, so Ulysses is the plan that both can run.

A ratio is the median over rounds of the ratio within a round, so that slow drifts of the machine cancel.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..backend.errors import InternalError
from ..backend.models.tiny import write_tiny_flux
from .report import Figure, Spread, argument_parser, finish

BENCHMARK = "scaling"
CASE = "1024 image + 128 text tokens"
PLANS = ("ulysses=2", "ring=2")
DIFFUSERS = "diffusers ulysses=2"
STOCK = "stock 2 threads"
_ARGUMENTS = {"context": "context", "y": "pooled", "guidance": "guidance"}
"""Argument of ComfyUI's network -> input."""
WARM_UP_ROUNDS = 2

REPOSITORY = Path(__file__).resolve().parents[1]
COMFYUI = REPOSITORY / ".comfyui" / "0.30.0"


class Contestant:
    """One process, or one group of ranks, that takes a step when it is told to."""

    def __init__(self, processes: list[subprocess.Popen[str]], errors: list[Path]) -> None:
        self._processes = processes
        self._errors = errors

    def step_s(self, what: str) -> float:
        """The time of one step: that of the slowest process."""
        return max(float(answer) for answer in self.ask(what))

    def ask(self, what: str) -> list[str]:
        """One line to every process; one line of each back."""
        for process in self._processes:
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # the answer that is missing says more
                    process.stdin.write(f"{what}\n")
                    process.stdin.flush()
        return [self._answer(index) for index in range(len(self._processes))]

    def _answer(self, index: int) -> str:
        stdout = self._processes[index].stdout
        line = stdout.readline() if stdout is not None else ""
        if not line:
            tail = self._errors[index].read_text(encoding="utf-8", errors="replace")[-2000:]
            raise InternalError(f"A process of the benchmark ended early:\n{tail}")
        return line


@contextlib.contextmanager
def started(
    commands: list[list[str]], environments: list[Mapping[str, str]], folder: Path, name: str
) -> Iterator[Contestant]:
    """Processes that live as long as the block."""
    processes: list[subprocess.Popen[str]] = []
    errors = [folder / f"{name}-{index}.stderr" for index in range(len(commands))]
    try:
        for command, environment, error in zip(commands, environments, errors, strict=True):
            with error.open("w") as stderr:
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=stderr,
                        text=True,
                        env={**os.environ, **environment},
                    )
                )
        yield Contestant(processes, errors)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def write_job(folder: Path, depth: int, depth_single: int) -> None:
    """The checkpoint and the inputs of the one call that everybody makes."""
    geometry = write_tiny_flux(folder / "flux.safetensors", hidden=512, depth=depth, depth_single=depth_single)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "x": torch.randn(1, 16, 64, 64, generator=generator),
        "timestep": torch.tensor([0.5]),
        "context": torch.randn(1, 128, geometry.context_dim, generator=generator),
        "pooled": torch.randn(1, geometry.pooled_dim, generator=generator),
        "guidance": torch.tensor([3.5]),
    }
    save_file({f"{CASE}/{name}": tensor for name, tensor in inputs.items()}, folder / "inputs.safetensors")
    job = {
        "checkpoint": str(folder / "flux.safetensors"),
        "dtype": "float32",
        "cases": [
            {"name": CASE, "checkpoint": str(folder / "flux.safetensors"), "arguments": _ARGUMENTS, "options": {}}
        ],
    }
    (folder / "job.json").write_text(json.dumps(job))


def start_ranks(folder: Path) -> contextlib.AbstractContextManager[Contestant]:
    """Two ranks with one thread each."""
    command = [sys.executable, "-m", f"{__package__}.scaling_rank", str(folder)]
    shared = {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return started([command, command], [{**shared, "RANK": str(rank)} for rank in range(2)], folder, "rank")


def start_stock(folder: Path) -> contextlib.AbstractContextManager[Contestant | None]:
    """Stock ComfyUI's network, where there is one."""
    python = COMFYUI / "venv" / "bin" / "python"
    if not python.exists():
        print("stock ComfyUI is not measured: run `python3 install.py comfyui` first", file=sys.stderr)
        return contextlib.nullcontext()
    script = str(Path(__file__).with_name("stock_network.py"))
    command = [str(python), script, str(COMFYUI / "ComfyUI"), str(folder), "2"]
    return started([command], [{"OMP_NUM_THREADS": "2"}], folder, "stock")


def measure(rounds: int, depth: int, depth_single: int) -> dict[str, list[float]]:
    """Step times in seconds by contestant, one per round."""
    with tempfile.TemporaryDirectory(prefix="tutti-scaling-") as name:
        folder = Path(name)
        write_job(folder, depth, depth_single)
        with start_ranks(folder) as ranks, start_stock(folder) as stock:
            times: dict[str, list[float]] = {}
            for number in range(WARM_UP_ROUNDS + rounds):
                taken = {what: ranks.step_s(what) for what in (*PLANS, DIFFUSERS)}
                if stock is not None:
                    taken[STOCK] = stock.step_s(CASE)
                if number >= WARM_UP_ROUNDS:
                    for what, seconds in taken.items():
                        times.setdefault(what, []).append(seconds)
    return times


def figures_of(times: Mapping[str, list[float]]) -> list[Figure]:
    """Step times and the two promised ratios."""
    figures = [
        Figure(case=what, metric="step time", spread=Spread.of([1000 * t for t in samples]), unit="ms")
        for what, samples in times.items()
    ]

    def ratio(case: str, metric: str, over: str, under: str, baseline: str) -> None:
        if over in times and under in times:
            paired = [a / b for a, b in zip(times[over], times[under], strict=True)]
            figures.append(Figure(case=case, metric=metric, spread=Spread.of(paired), unit="x", baseline=baseline))

    for plan in PLANS:
        ratio(plan, "stock 2 threads / 2 ranks x 1 thread", STOCK, plan, STOCK)
    ratio("ulysses=2", "step time / diffusers context parallel", "ulysses=2", DIFFUSERS, DIFFUSERS)
    return figures


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=21, help="measured rounds (default: 21)")
    parser.add_argument("--depth", type=int, default=3, help="double blocks (default: 3)")
    parser.add_argument("--depth-single", type=int, default=6, help="single blocks (default: 6)")
    options = parser.parse_args(arguments)
    times = measure(options.rounds, options.depth, options.depth_single)
    return finish(BENCHMARK, figures_of(times), options)


if __name__ == "__main__":
    sys.exit(main())
