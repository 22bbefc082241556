"""What each rank runs for the families' parity tests: every call under every plan, velocity by velocity."""

from __future__ import annotations

import warnings
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tutti.backend.models.registry import load_model
from tutti.backend.parallel.branches import compute_branches
from tutti.backend.parallel.compile import Compiler
from tutti.backend.parallel.plan import Plan

from tests.support.calls import read_calls
from tests.support.dropping import dropping
from tests.support.ranks import this_rank


def main() -> None:
    rank = this_rank()
    dtype = getattr(torch, rank.arguments["dtype"])
    models = {
        path: load_model(Path(path), dtype=dtype, device=rank.group.device, progress=lambda _: None)
        for path in rank.arguments["checkpoints"]
    }
    rank.facts = {"families": sorted({model.family for model in models.values()})}
    calls = read_calls(Path(rank.arguments["calls"]))
    compilers = {mode: Compiler(mode, rank.group.device) for mode in ("off", "blocks")}
    for (plan, checkpoint, dropped, mode), group in groupby(rank.arguments["cases"], key=_together):
        cases, model, mesh = list(group), models[checkpoint], rank.group.mesh(Plan.parse(plan))
        if mode != "off":
            warnings.resetwarnings()  # the compiler imports parts of torch that torch itself has deprecated
            _unbind(model)
        model.bind(mesh, compilers[mode])
        drops = dropped and mesh.sequence.index == mesh.sequence.size - 1

        def compute(index: int, cases: list[Any] = cases, adapter: Any = model.adapter) -> Tensor:
            call = calls[cases[index]["call"]]
            adapter.check(call.spec())
            adapter.check_values(call.conditioning)
            velocity: Tensor = adapter.velocity(call.x, call.timestep, call.conditioning, call.options)
            return velocity

        # With cfg parallel each half of the ranks computes every other call, of another size than its neighbour's.
        shapes = [model.adapter.answer_shape(tuple(calls[case["call"]].x.shape)) for case in cases]
        with dropping(drops):
            answers = compute_branches(mesh, shapes, compute)
        rank.tensors |= {case["name"]: answer for case, answer in zip(cases, answers, strict=True)}
        if mode != "off":
            network = compilers[mode].running
            assert network is not None
            rank.facts.setdefault("not compiled", {}).update(network.failures)
            _unbind(model)
    rank.facts["graphs"] = compilers["blocks"].graphs
    rank.finish()


def _unbind(model: Any) -> None:
    """Take the network off its mesh, so that the next binding is a new one, compiled otherwise."""
    if model.adapter._binding is not None:
        model.adapter._binding.remove()
        model.adapter._binding = None


def _together(case: dict[str, Any]) -> tuple[str, str, bool, str]:
    return case["plan"], case["checkpoint"], case["dropped"], case["mode"]


if __name__ == "__main__":
    main()
