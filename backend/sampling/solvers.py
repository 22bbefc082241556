"""Solvers of the probability-flow ODE on ``denoise(x, sigma)``: euler, heun and dpmpp_2m.

All integrate ``dx/dsigma = (x - denoised) / sigma`` (Karras et al. 2022, equation 1 with ``sigma(t) = t``) along a given list of sigmas.
Step sizes and coefficients are Python floats computed from the float32 sigmas; x stays in its own dtype. Everything is deterministic:
ranks that hold the same bits go on holding the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from .flow import Denoise

OnStep = Callable[[int, Tensor], None]
"""``on_step(step, denoised)`` once in every step, after its first call of ``denoise``; steps count from 0."""

Solver = Callable[[Denoise, Tensor, Tensor, OnStep], Tensor]
"""``solve(denoise, x, sigmas, on_step) -> x`` at the last sigma. ``sigmas`` is one-dimensional and on the CPU, ``x`` is at ``sigmas[0]``;
fewer than two sigmas give ``x`` back."""


def _steps(sigmas: Tensor) -> list[tuple[int, float, float]]:
    """``(step, sigma, next sigma)`` of every step."""
    return [(step, sigma, sigma_next) for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist()))]


def _slope(x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """``dx/dsigma``."""
    return (x - denoised) / sigma


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep) -> Tensor:
    """First order: one call a step (Karras et al. 2022, algorithm 1 without its correction)."""
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = denoise(x, sigma)
        on_step(step, denoised)
        x = x + _slope(x, denoised, sigma) * (sigma_next - sigma)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep) -> Tensor:
    """Second order: the mean of the slopes at both ends of the step (Karras et al. 2022, algorithm 1).

    Two calls a step; one when the step ends at sigma 0, where the slope is undefined.
    """
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = denoise(x, sigma)
        on_step(step, denoised)
        slope, width = _slope(x, denoised, sigma), sigma_next - sigma
        predicted = x + slope * width
        if sigma_next == 0:
            x = predicted
        else:
            slope_next = _slope(predicted, denoise(predicted, sigma_next), sigma_next)
            x = x + (slope + slope_next) / 2 * width
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep) -> Tensor:
    """DPM-Solver++(2M), data prediction, multistep (Lu et al. 2022, algorithm 2), with ``alpha = 1``, so that ``lambda = -log(sigma)``.

    That is ComfyUI's and k-diffusion's definition for every model, flow models included; diffusers takes
    ``lambda = log((1 - sigma) / sigma)`` there and gives another picture. With ``h = lambda_next - lambda``:

        x_next = (sigma_next / sigma) x + (1 - exp(-h)) D,    exp(-h) = sigma_next / sigma
        D      = denoised + (denoised - previous) / (2 r),    r = h_previous / h

    First order (``D = denoised``) in the first step and in a step that ends at sigma 0.
    """
    previous: Tensor | None = None
    h_previous = 0.0
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = denoise(x, sigma)
        on_step(step, denoised)
        h = math.log(sigma) - math.log(sigma_next) if sigma_next > 0 else math.inf
        target = denoised
        if previous is not None and math.isfinite(h) and h_previous != 0:
            weight = h / (2 * h_previous)
            target = (1 + weight) * denoised - weight * previous
        x = (sigma_next / sigma) * x - math.expm1(-h) * target
        previous, h_previous = denoised, h
    return x


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}
"""ComfyUI's sampler name -> solver."""
