"""The job that benchmarks sample: a small random FLUX.1, one picture, seeded noise."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from ..backend.models.tiny import write_tiny_flux
from ..backend.wire.messages import Branch, ModelRef, Sample
from ..backend.wire.tensors import WireTensor
from ..backend.worker.tensors import to_wire

MODEL: Final = "diffusion_models/benchmark.safetensors"
_CONTEXT_WIDTH: Final = 64
_POOLED_WIDTH: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxJob:
    """A job's size. Every :meth:`sample` is a new job with the same numbers."""

    side: int
    """Height and width of the latent; a quarter of its square is the number of image tokens."""
    text_tokens: int
    hidden: int
    depth: int
    depth_single: int

    def write_checkpoint(self, models: Path) -> None:
        """Put the checkpoint into a models folder."""
        path = models / MODEL
        path.parent.mkdir(parents=True)
        write_tiny_flux(
            path,
            hidden=self.hidden,
            depth=self.depth,
            depth_single=self.depth_single,
            context_dim=_CONTEXT_WIDTH,
            pooled_dim=_POOLED_WIDTH,
        )

    def sample(self, steps: int, *, previews: bool) -> tuple[Sample, dict[str, WireTensor]]:
        """An euler run of ``steps`` steps without guidance: one call a step."""
        generator = torch.Generator().manual_seed(7)

        def draw(*shape: int) -> WireTensor:
            return to_wire(torch.randn(shape, generator=generator))

        tensors = {
            "noise": draw(1, 16, self.side, self.side),
            "sigmas": to_wire(torch.linspace(1, 0, steps + 1)),
            "branch.0.context": draw(1, self.text_tokens, _CONTEXT_WIDTH),
            "branch.0.pooled": draw(1, _POOLED_WIDTH),
            "branch.0.guidance": to_wire(torch.tensor([3.5])),
        }
        sample = Sample(
            job_id=secrets.token_hex(16),
            node_id="benchmark",
            on=ModelRef(model=MODEL, family="flux", dtype="F32"),
            sampler="euler",
            cfg=1.0,
            timestep_multiplier=1.0,
            branches=(Branch(kind="positive"),),
            previews=previews,
        )
        return sample, tensors
