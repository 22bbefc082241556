"""A Sample: the whole loop of one trajectory, the same on every rank."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadRequest
from ..sampling import flow, guidance
from ..sampling.solvers import SOLVERS
from ..wire.messages import Sample
from .inputs import guidance_pair
from .network import BranchCall, GatedNetwork

OnStep = Callable[[int, Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a Sample gives."""

    latent: Tensor
    """The final latent in model space, float32 like the noise."""
    x0: Tensor
    """What the last step took the clean latent for."""


def run_sample(sample: Sample, tensors: Mapping[str, Tensor], network: GatedNetwork, on_step: OnStep) -> Outcome:
    """Run a whole trajectory. Collective: every rank makes the same calls, and holds the same bits after each of them.

    Raises:
        BadRequest: the sigmas cannot be sampled. On every rank alike, and before the first call.
        JobCancelled, Draining: on every rank alike, between two calls.
    """
    sigmas = tensors["sigmas"].cpu()
    check_sigmas(sigmas)
    noise = tensors["noise"]
    latent = tensors["latent"] if "latent" in tensors else torch.zeros_like(noise)
    denoise = _denoiser(sample, tensors, network)
    if "mask" in tensors:
        denoise = flow.inpainting(denoise, mask=tensors["mask"], noise=noise, latent=latent)
    last_denoised: Tensor | None = None

    def keep_last(step: int, denoised: Tensor) -> None:
        nonlocal last_denoised
        last_denoised = denoised
        on_step(step, denoised)

    x = flow.scale_noise(float(sigmas[0]), noise, latent)
    x = SOLVERS[sample.sampler](denoise, x, sigmas, keep_last)
    x = flow.unscale_noise(float(sigmas[-1]), x)
    return Outcome(latent=x, x0=x if last_denoised is None else last_denoised)


def check_sigmas(sigmas: Tensor) -> None:
    """Raise :class:`BadRequest` unless the sigmas are finite and positive; only the last one may be 0."""
    values = sigmas.tolist()
    bad = [value for value in values if not math.isfinite(value) or value < 0] or [
        value for value in values[:-1] if value == 0
    ]
    if bad:
        raise BadRequest(f"Use finite sigmas above 0 (the last one may be 0): got {bad[0]:g}.")


def _denoiser(sample: Sample, tensors: Mapping[str, Tensor], network: GatedNetwork) -> flow.Denoise:
    """``denoise(x, sigma)`` of the network under guidance."""
    pair = guidance_pair(sample)
    batch = tensors["noise"].shape[0]
    branches = [
        guidance.BranchInput(
            conditioning=network.prepare(_of_branch(tensors, index), batch), options=sample.branches[index].options
        )
        for index in pair.indices
    ]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        def timestep(batch: int) -> Tensor:
            return torch.full((batch,), sigma * sample.timestep_multiplier, dtype=torch.float32, device=x.device)

        number = itertools.count()  # of the call within this step: a step always makes the same ones

        def call(x: Tensor, conditioning: guidance.Conditioning, options: guidance.Options) -> Tensor:
            return network(x, timestep(x.shape[0]), conditioning, options, branch=next(number))

        if network.splits_branches:
            at = timestep(x.shape[0])
            velocities = network.each(
                [
                    BranchCall(x=x, timestep=at, conditioning=b.conditioning, options=b.options, branch=index)
                    for index, b in enumerate(branches)
                ]
            )
        else:
            velocities = guidance.evaluate_branches(call, x, branches)
        denoised = [flow.denoised_from_velocity(x, velocity, sigma) for velocity in velocities]
        return denoised[0] if len(denoised) == 1 else guidance.combine(denoised[0], denoised[1], sample.cfg)

    return denoise


def _of_branch(tensors: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    prefix = f"branch.{index}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
