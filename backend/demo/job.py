"""The demo's job: noise, sigmas and a made-up conditioning, as one Sample."""

from __future__ import annotations

import secrets
from dataclasses import replace

import torch

from ..client import job_id_for
from ..wire.messages import Branch, ModelRef, Sample
from ..wire.tensors import WireTensor
from ..worker.tensors import to_wire
from .request import flux_sigmas


def demo_sample(
    model: str,
    plan: str,
    *,
    cells: int,
    steps: int,
    context_width: int,
    pooled_width: int,
    client_id: str,
    seed: int = 7,
) -> tuple[Sample, dict[str, WireTensor]]:
    """One trajectory of ``steps`` steps on a latent of ``cells`` x ``cells``, with seeded noise and a random prompt of 32 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> WireTensor:
        return to_wire(torch.randn(shape, generator=generator))

    tensors = {
        "noise": random(1, 16, cells, cells),
        "sigmas": to_wire(flux_sigmas(steps)),
        "branch.0.context": random(1, 32, context_width),
        "branch.0.pooled": random(1, pooled_width),
        "branch.0.guidance": to_wire(torch.tensor([3.5])),
    }
    sample = Sample(
        job_id="0" * 32,
        node_id=f"demo-{secrets.token_hex(4)}",  # another run is another job, not a repetition of the last one
        on=ModelRef(model=model, family="flux", dtype="F32", plan=plan),
        sampler="euler",
        cfg=1.0,
        timestep_multiplier=1.0,
        branches=(Branch(kind="positive"),),
        previews=True,
    )
    return replace(sample, job_id=job_id_for(sample, tensors, client_id)), tensors
