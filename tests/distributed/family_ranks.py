"""What each rank runs for the families' parity tests: every call under every plan, velocity by velocity."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from tutti.backend.models.registry import load_model
from tutti.backend.parallel.exchange import RawCodec
from tutti.backend.parallel.plan import Plan

from tests.support.calls import read_calls
from tests.support.ranks import this_rank

DROPPED = "dropped"


class _Dropped(RawCodec):
    """The negative control: what the others sent is thrown away."""

    def decode(self, payload: Tensor, landing: Tensor) -> Tensor:
        return landing.zero_()


def main() -> None:
    rank = this_rank()
    dtype = getattr(torch, rank.arguments["dtype"])
    models = {
        path: load_model(Path(path), dtype=dtype, device=rank.group.device, progress=lambda _: None)
        for path in rank.arguments["checkpoints"]
    }
    rank.facts = {"families": sorted({model.family for model in models.values()})}
    calls = read_calls(Path(rank.arguments["calls"]))
    whole = RawCodec.decode
    for case in rank.arguments["cases"]:
        drops = case.get(DROPPED, False) and rank.rank == rank.world_size - 1
        RawCodec.decode = _Dropped.decode if drops else whole  # type: ignore[method-assign]
        model = models[case["checkpoint"]]
        model.bind(rank.group.mesh(Plan.parse(case["plan"])))
        call = calls[case["call"]]
        model.adapter.check(call.spec())
        rank.tensors[case["name"]] = model.adapter.velocity(call.x, call.timestep, call.conditioning, call.options)
    rank.finish()


if __name__ == "__main__":
    main()
