"""FLUX.1 on an NVIDIA GPU: several ranks share one GPU through host-staged gloo, and NCCL carries what a group of one can."""

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
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU: run `python3 install.py test` on a machine with one"
    ),
    pytest.mark.timeout(300),
]

CALLS = {
    "63 and 15 tokens": FluxCall(height=14, width=18, tokens=15),
    "batch 3": FluxCall(height=10, width=14, tokens=7, batch=3),
}
PLANS = {1: ["ulysses=1"], 2: ["ulysses=2", "ring=2"], 4: ["ulysses=4", "ulysses=2,ring=2", "ring=4"]}


@pytest.mark.parametrize("world_size", PLANS)
def test_ranks_that_share_one_gpu_give_the_reference_velocity(world_size: int, tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny_flux(checkpoint, hidden=512)
    cases = [
        {"name": f"{plan}: {name}", "plan": plan, "call": call.to_json()}
        for plan in PLANS[world_size]
        for name, call in CALLS.items()
    ]
    arguments = {"checkpoint": str(checkpoint), "device": "cuda:0", "cases": cases}
    if world_size > 1:
        arguments["transport"] = "gloo-host-staged"
    results = run_ranks("tests.distributed.flux_ranks", world_size, tmp_path / "ranks", arguments, timeout_s=250)
    network = ReferenceFlux(load_file(checkpoint))
    for name, call in CALLS.items():
        x, timestep, conditioning = call.tensors()
        reference = network.velocity(x, timestep, **conditioning)
        for plan in PLANS[world_size]:
            for result in results:
                assert relative_error(result.tensors[f"{plan}: {name}"], reference) <= FP32_TOLERANCE


def test_nccl_carries_every_dtype_in_a_group_of_one(tmp_path: Path) -> None:
    arguments = {"device": "cuda:0"}
    (result,) = run_ranks("tests.distributed.nccl_rank", 1, tmp_path / "ranks", arguments, timeout_s=250)
    for name, tensor in result.tensors.items():
        dtype = name.rpartition(" ")[0]
        assert torch.equal(tensor, result.tensors[f"{dtype} sent"])
