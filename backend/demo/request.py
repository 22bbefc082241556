"""Prompts, noise and sigmas as one Sample: several pictures at once, each row with its own prompt."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from ..assets.advice import PIXELS_PER_CELL
from ..assets.files import TRANSFORMER
from ..assets.prompt import Prompt
from ..client import job_id_for
from ..wire.messages import Branch, ModelRef, Sample
from ..wire.tensors import Tensors
from ..worker.tensors import to_wire

CHANNELS: Final = 16
_FLUX_SHIFT: Final = 1.15


def flux_sigmas(steps: int) -> Tensor:
    """FLUX.1's schedule at the shift ComfyUI gives it: ``e^m / (e^m + 1/t - 1)`` for t from 1 to 0, float32 ``[steps + 1]``."""
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    grown = math.exp(_FLUX_SHIFT)
    return (grown * t / (1 + (grown - 1) * t)).float()


def demo_sample(
    prompts: Sequence[Prompt], *, width: int, height: int, steps: int, guidance: float, first_seed: int, plan: str, client_id: str
) -> tuple[Sample, Tensors]:  # fmt: skip
    """A picture for each of ``prompts``, of ``width`` x ``height`` pixels. The noise of each depends on its own seed alone."""
    seeds = range(first_seed, first_seed + len(prompts))
    noise = torch.stack([_noise(height // PIXELS_PER_CELL, width // PIXELS_PER_CELL, seed) for seed in seeds])
    tensors = {
        "noise": to_wire(noise),
        "sigmas": to_wire(flux_sigmas(steps)),
        "branch.0.context": to_wire(torch.tensor([prompt.context() for prompt in prompts])),
        "branch.0.pooled": to_wire(torch.tensor([prompt.pooled() for prompt in prompts])),
        "branch.0.guidance": to_wire(torch.full((len(prompts),), guidance)),
    }
    sample = Sample(
        job_id="0" * 32,
        node_id=f"demo-{secrets.token_hex(4)}",  # another run is another job, not a repetition of the last one
        on=ModelRef(model=TRANSFORMER, family="flux", dtype="F32", plan=plan),
        sampler="euler",
        cfg=1.0,
        timestep_multiplier=1.0,
        branches=(Branch(kind="positive"),),
        previews=False,
    )
    return replace(sample, job_id=job_id_for(sample, tensors, client_id)), tensors


def _noise(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(CHANNELS, rows, columns, generator=torch.Generator().manual_seed(seed))
