"""A few prompts through the demo model on one rank, in this process, with the recorder listening."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ...backend.assets.advice import GUIDANCE
from ...backend.assets.prompt import TOKENS
from ...backend.demo.options import STEPS
from ...backend.demo.request import flux_sigmas
from ...backend.demo.terminal import Terminal
from ...backend.errors import InternalError
from ...backend.models.adapter import CallSpec
from ...backend.models.registry import ResidentModel, load_model
from ...backend.parallel.mesh import SequenceMesh, build_meshes
from ...backend.parallel.plan import Plan
from ...backend.parallel.transport import choose_transport
from ...backend.sampling.flow import denoised_from_velocity, scale_noise
from ...backend.sampling.solvers import euler
from ..demo_model.flow import encode_prompts
from ..quality.prompts import Prompt, noise_of
from .recorder import Recorder, Row

_CPU = torch.device("cpu")


def record(checkpoint: Path, prompts: Sequence[Prompt], steps: int = STEPS) -> tuple[list[Row], Tensor]:
    """What was recorded, and the final latents ``[B, 16, 16, 16]``: those of the quality benchmark's reference."""
    model = load_model(checkpoint, dtype=torch.float32, device=_CPU, progress=lambda _: None)
    model.bind(mesh_of_one())
    recorder, terminal = Recorder(attention_names(model), text_tokens=TOKENS), Terminal()
    with torch.no_grad(), recorder:
        latents = _sample(model, prompts, steps, terminal)
    if recorder.steps != steps:
        raise InternalError(f"{recorder.steps} steps were recorded of {steps}.")
    return recorder.rows, latents


def mesh_of_one() -> SequenceMesh:
    """The mesh of a group of one rank, which needs no process group."""

    def no_group(ranks: list[int]) -> ProcessGroup:
        raise InternalError(f"One rank needs no process group: asked for {ranks}.")

    return build_meshes(0, 1, _CPU, choose_transport(None, _CPU, 1), no_group)[Plan()]


def attention_names(model: ResidentModel) -> list[str]:
    """The layers in the order in which they run: ``double 0``, ..., ``single 0``, ..."""
    geometry = model.adapter.geometry  # type: ignore[attr-defined]  # the demo model is a FLUX.1
    return [f"double {n}" for n in range(geometry.depth)] + [f"single {n}" for n in range(geometry.depth_single)]


def _sample(model: ResidentModel, prompts: Sequence[Prompt], steps: int, terminal: Terminal) -> Tensor:
    context, pooled = encode_prompts([prompt.text for prompt in prompts])
    conditioning = {"context": context, "pooled": pooled, "guidance": torch.full((len(prompts),), GUIDANCE[1])}
    noise, sigmas = noise_of(prompts), flux_sigmas(steps)
    shapes = {name: tuple(tensor.shape) for name, tensor in conditioning.items()}
    model.adapter.check(CallSpec(x_shape=tuple(noise.shape), conditioning=shapes))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        timestep = torch.full((len(x),), sigma)
        return denoised_from_velocity(x, model.adapter.velocity(x, timestep, conditioning, {}), sigma)

    start = scale_noise(float(sigmas[0]), noise, torch.zeros_like(noise))
    return euler(denoise, start, sigmas, lambda step, _: terminal.bar("steps", step + 1, steps))
