"""What each rank runs for test_flux_plans: every case of the arguments, velocity by velocity."""

from __future__ import annotations

from pathlib import Path

import torch
from tutti.backend.models.adapter import CallSpec
from tutti.backend.models.registry import load_model
from tutti.backend.parallel.plan import Plan

from tests.support.dropping import dropping
from tests.support.flux_calls import FluxCall
from tests.support.ranks import this_rank


def main() -> None:
    rank = this_rank()
    dtype = getattr(torch, rank.arguments.get("dtype", "float32"))
    device = rank.group.device
    model = load_model(Path(rank.arguments["checkpoint"]), dtype=dtype, device=device, progress=lambda _: None)
    for case in rank.arguments["cases"]:
        model.bind(rank.group.mesh(Plan.parse(case["plan"])))
        call = FluxCall.from_json(case["call"])
        x, timestep, conditioning = call.tensors()
        model.adapter.check(
            CallSpec(
                x_shape=tuple(x.shape),
                conditioning={name: tuple(tensor.shape) for name, tensor in conditioning.items()},
                options=call.options(),
            )
        )
        on_device = {name: tensor.to(device) for name, tensor in conditioning.items()}
        with dropping(case.get("dropped_by") == rank.rank):
            velocity = model.adapter.velocity(x.to(device), timestep.to(device), on_device, call.options())
        rank.tensors[case["name"]] = velocity.cpu()
    rank.finish()


if __name__ == "__main__":
    main()
