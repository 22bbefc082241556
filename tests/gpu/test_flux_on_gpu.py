"""FLUX.1 on one NVIDIA GPU: several ranks share it through host memory, and NCCL runs at world size 1. TF32 is off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkpoints import write_tiny_flux
from tests.support.flux_calls import FluxCall
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.ranks import run_ranks
from tests.support.reference_flux import ReferenceFlux

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs an NVIDIA GPU: run `python3 install.py test -- tests/gpu` on a machine that has one",
    ),
]

CALLS = {
    "64 image and 16 text tokens": FluxCall(height=16, width=16, tokens=16),
    "63 and 15 tokens": FluxCall(height=14, width=18, tokens=15),
    "batch 3": FluxCall(height=10, width=14, tokens=7, batch=3),
}
PLANS = {
    ("nccl", 1): ("ulysses=1",),
    ("gloo-host-staged", 2): ("ulysses=2", "ring=2"),
    ("gloo-host-staged", 4): ("ulysses=4", "ulysses=2,ring=2", "ring=4"),
}


@pytest.mark.parametrize(("transport", "world_size"), list(PLANS))
def test_ranks_on_one_gpu_give_the_reference_velocity(transport: str, world_size: int, tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny_flux(checkpoint, hidden=512, depth=2, depth_single=2)
    plans = PLANS[transport, world_size]
    cases = [
        {"name": f"{plan}: {name}", "plan": plan, "call": call.to_json()}
        for plan in plans
        for name, call in CALLS.items()
    ]
    control = "63 and 15 tokens"
    if world_size > 1:
        cases.append(
            {"name": "dropped", "plan": plans[0], "call": CALLS[control].to_json(), "dropped_by": world_size - 1}
        )
    arguments = {"checkpoint": str(checkpoint), "cases": cases, "device": "cuda:0", "transport": transport}
    results = run_ranks("tests.distributed.flux_ranks", world_size, tmp_path / "ranks", arguments, timeout_s=250)
    network = ReferenceFlux(load_file(checkpoint))
    for name, call in CALLS.items():
        x, timestep, conditioning = call.tensors()
        reference = network.velocity(x, timestep, **conditioning)
        for plan in plans:
            for result in results:
                assert relative_error(result.tensors[f"{plan}: {name}"], reference) <= FP32_TOLERANCE, f"{plan}: {name}"
        if name == control and world_size > 1:
            errors = [relative_error(result.tensors["dropped"], reference) for result in results]
            assert min(errors) > 100 * FP32_TOLERANCE
