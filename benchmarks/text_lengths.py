"""A prompt of another length: one graph with a symbolic length, or a graph for each bucket of padded text?

Three processes, one CPU rank each, the small FLUX of the step benchmark, blocks compiled, steps interleaved: a graph made for this very length; a
graph that torch made symbolic after it had met two other lengths, as ranks have it from the third length on; and a graph for the length of the bucket.
The last is a bound in the bucket's favour: to stay exact, padding would need a mask in every attention, which is left out.

    python -m tutti.benchmarks.text_lengths [--json FILE] [--check] [--rounds N]
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from .report import Figure, Spread, argument_parser, finish
from .scaling import started

BENCHMARK: Final = "text lengths"
MODEL: Final = "flux-512"
LENGTH: Final = 77
BUCKET: Final = 128
MET_BEFORE: Final = (13, 201)
"""Other lengths than LENGTH; torch makes the second one's graph symbolic."""
CONTESTANTS: Final = {"static": (LENGTH,), "symbolic": (*MET_BEFORE, LENGTH), "bucket": (BUCKET,)}
"""Name -> the lengths of the text that a process meets, in this order; the last one is timed."""
WARM_UPS: Final = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="measured rounds (default: 25)")
    parser.add_argument("--contestant", choices=CONTESTANTS, help="be one of the processes")
    options = parser.parse_args(arguments)
    if options.contestant:
        take_steps(CONTESTANTS[options.contestant])
        return 0
    return finish(BENCHMARK, figures_of(*race(options.rounds)), options)


def race(rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Step times in seconds, and how many graphs were made, by contestant."""
    with tempfile.TemporaryDirectory(prefix="tutti-lengths-") as folder, contextlib.ExitStack() as stack:
        processes = {}
        for name in CONTESTANTS:
            command = [sys.executable, "-m", f"{__package__}.text_lengths", "--contestant", name]
            environment = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/{name}"}
            processes[name] = stack.enter_context(started([command], [environment], Path(folder), name))
        graphs = {name: int(process.ask("ready")[0]) for name, process in processes.items()}
        times: dict[str, list[float]] = {name: [] for name in processes}
        for turn in range(rounds):
            # Who goes first changes: the one after a pause has colder caches.
            order = list(processes) if turn % 2 else list(reversed(processes))
            for name in order:
                times[name].append(processes[name].step_s("step"))
    return times, graphs


def figures_of(times: dict[str, list[float]], graphs: dict[str, int]) -> list[Figure]:
    """Times, graphs, and the ratios to a graph made for the very length, round by round."""
    case = f"{LENGTH} tokens, bucket of {BUCKET}"
    figures = []
    for name, samples in times.items():
        ms = Spread.of([1000 * sample for sample in samples])
        figures += [
            Figure(case=case, metric=f"{name}, step time", spread=ms, unit="ms"),
            Figure.one(case=case, metric=f"{name}, graphs made", value=graphs[name], unit=""),
        ]
    for name in ("symbolic", "bucket"):
        ratios = [a / b for a, b in zip(times[name], times["static"], strict=True)]
        figures.append(
            Figure(case=case, metric=f"{name} / static", spread=Spread.of(ratios), unit="x", baseline="static")
        )
    return figures


def take_steps(lengths: Sequence[int]) -> None:
    """Meet these lengths, say how many graphs that took, then answer every line with the seconds of a step of the last one."""
    import torch

    from ..backend.models.family import TransformerAdapter
    from ..backend.parallel.compile import Compiler
    from ..backend.parallel.compile_modes import BLOCKS
    from ..backend.parallel.plan import Plan
    from .step.clock import step_s
    from .step.networks import MODELS, draw_call, draw_network
    from .step.peers import fake_mesh

    torch.set_num_threads(1)
    device = torch.device("cpu")
    model = MODELS[MODEL]
    adapter = TransformerAdapter(model.family, draw_network(model, device), model.geometry, model.dtype, device)
    compiler = Compiler(BLOCKS, device)
    adapter.bind(fake_mesh(Plan(), device)[0], compiler)

    def step() -> None:
        adapter.velocity(call.x, call.timestep, call.conditioning, call.options)

    for length in lengths:
        context = (1, length, model.geometry.context_dim)
        call = draw_call(replace(model, conditioning={**model.conditioning, "context": context}), device)
        for _ in range(WARM_UPS):
            step()
    for line in sys.stdin:
        print(compiler.graphs if line.strip() == "ready" else step_s(step, device), flush=True)


if __name__ == "__main__":
    sys.exit(main())
