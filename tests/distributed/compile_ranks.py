"""What each rank runs for test_compile: every call eager and compiled, how far apart they are, and what was compiled."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from tutti.backend.models.registry import load_model
from tutti.backend.parallel.compile import Compiler
from tutti.backend.parallel.compile_modes import OFF
from tutti.backend.parallel.plan import Plan

from tests.support.calls import read_calls
from tests.support.dropping import dropping
from tests.support.parity import relative_error
from tests.support.ranks import this_rank


def main() -> None:
    # The compiler imports parts of torch that torch itself has deprecated.
    warnings.resetwarnings()
    rank = this_rank()
    if rank.rank in rank.arguments.get("without_compiler", ()):
        os.environ["CXX"] = "/nowhere/c++"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(rank.folder / "nothing compiled")
    model = load_model(
        Path(rank.arguments["checkpoint"]), dtype=torch.float32, device=rank.group.device, progress=lambda _: None
    )
    calls = read_calls(Path(rank.arguments["calls"]))
    compiler = Compiler(rank.arguments["mode"], rank.group.device)
    if rank.rank in rank.arguments.get("without_memory", ()):
        run_out_of_memory_once(compiler)

    def velocities(plan: Plan, compiler: Compiler) -> dict[str, Tensor]:
        model.bind(rank.group.mesh(plan), compiler)
        return {
            name: model.adapter.velocity(call.x, call.timestep, call.conditioning, call.options)
            for name, call in calls.items()
        }

    rows: list[dict[str, Any]] = []
    for text in rank.arguments["plans"]:
        plan = Plan.parse(text)
        eager = velocities(plan, Compiler(OFF, rank.group.device))
        _leave(model)
        before = compiler.graphs
        compiled = velocities(plan, compiler)
        after = compiler.graphs
        again = velocities(plan, compiler)
        with dropping():
            dropped = velocities(plan, compiler)
        rows += [
            {
                "plan": text,
                "call": name,
                "error": relative_error(compiled[name], eager[name]),
                "control": relative_error(dropped[name], eager[name]),
                "repeats": torch.equal(compiled[name], again[name]),
                "graphs": after - before,
                "graphs_again": compiler.graphs - after,
            }
            for name in calls
        ]
        network = compiler.running
        assert network is not None
        rank.facts = {"kinds": network.kinds, "failures": network.failures, "state": compiler.state}
        _leave(model)
    rank.facts |= {
        "rows": rows,
        "breaks": sum(counters["graph_break"].values()),
        "graphs": counters["stats"]["unique_graphs"],
        "hits": counters["inductor"]["fxgraph_cache_hit"],
        "misses": counters["inductor"]["fxgraph_cache_miss"],
        "seconds": compiler.seconds,
    }
    rank.finish()


def run_out_of_memory_once(compiler: Compiler) -> None:
    """The first compiled block of all, when it has done everything that it does."""
    whole, met = compiler.form_of, []

    def form_of(forward: Callable[..., Any]) -> Callable[..., Any]:
        form = whole(forward)

        def runs_out(*arguments: Any, **named: Any) -> Any:
            out = form(*arguments, **named)
            if not met:
                met.append(True)
                raise torch.OutOfMemoryError("no room for the block's output")
            return out

        return runs_out

    compiler.form_of = form_of  # type: ignore[method-assign]


def _leave(model: Any) -> None:
    """Take the network off its mesh, so that the next binding is a new one."""
    model.adapter._binding.remove()
    model.adapter._binding = None


if __name__ == "__main__":
    main()
