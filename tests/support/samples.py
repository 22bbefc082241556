"""A Sample over a small random FLUX.1: noise, sigmas and a made-up conditioning."""

from __future__ import annotations

import secrets
from dataclasses import replace

import torch
from tutti.backend.client import job_id_for
from tutti.backend.demo.request import flux_sigmas
from tutti.backend.wire.messages import Branch, ModelRef, Sample
from tutti.backend.wire.tensors import Tensors, WireTensor
from tutti.backend.worker.tensors import to_wire


def random_sample(
    model: str, *, cells: int, steps: int, context_width: int, pooled_width: int, client_id: str, seed: int = 7
) -> tuple[Sample, Tensors]:
    """One trajectory of ``steps`` steps on a latent of ``cells`` x ``cells``, with seeded noise and a random prompt of 32 tokens.

    Every call makes another job, though with the same seed the same picture.
    """
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
        node_id=f"test-{secrets.token_hex(4)}",
        on=ModelRef(model=model, family="flux", dtype="F32"),
        sampler="euler",
        cfg=1.0,
        timestep_multiplier=1.0,
        branches=(Branch(kind="positive"),),
        previews=True,
    )
    return replace(sample, job_id=job_id_for(sample, tensors, client_id)), tensors
