"""Rectified-flow maths: what lies between a velocity network and a solver on ``(x, sigma) -> denoised``.

A point of the flow is ``x = sigma * noise + (1 - sigma) * latent``; the network predicts ``v = noise - latent`` (Liu, Gong and Liu 2022,
"Flow Straight and Fast"). The order of operations is that of ComfyUI's ``CONST`` model sampling, so that float32 results agree.
Sigmas are Python floats that hold float32 values exactly: no tensor of the device is read back in a step.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""``denoise(x, sigma) -> denoised``, both ``[batch, channels, height, width]``."""


def scale_noise(sigma: float, noise: Tensor, latent: Tensor) -> Tensor:
    """The point of the flow at ``sigma``: ``sigma * noise + (1 - sigma) * latent``."""
    return sigma * noise + (1.0 - sigma) * latent


def unscale_noise(sigma: float, x: Tensor) -> Tensor:
    """Undo the scale of what is left when a run stops at ``sigma``: ``x / (1 - sigma)``. Infinite at ``sigma = 1``, as in ComfyUI."""
    return x / (1.0 - sigma)


def denoised_from_velocity(x: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """The clean latent that a velocity points at: ``x - sigma * v``."""
    return x - velocity * sigma


def inpainting(denoise: Denoise, *, mask: Tensor, noise: Tensor, latent: Tensor) -> Denoise:
    """Keep ``latent`` where ``mask`` is 0 and sample where it is 1; soft masks blend. Broadcasts ``mask`` over ``noise``.

    Before each call the kept part is put back on its own flow line, after it the kept part of the answer is the latent itself:
    what ComfyUI's ``KSamplerX0Inpaint`` does.
    """
    keep = 1.0 - mask

    def denoise_masked(x: Tensor, sigma: float) -> Tensor:
        x = x * mask + scale_noise(sigma, noise, latent) * keep
        return denoise(x, sigma) * mask + latent * keep

    return denoise_masked
