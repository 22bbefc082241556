"""Timestep, guidance and pooled text as one vector, as ComfyUI makes it where diffusers makes another one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_WIDTH = 256


class ConditioningVector(nn.Module):
    """Timestep, guidance and pooled text as one vector per row, made before the transformer runs.

    diffusers rounds the timestep to the compute dtype before it is embedded, and cannot leave the guidance of a guidance model
    out; ComfyUI keeps the timestep in float32 and does leave it out. So the family calls :meth:`vector`, hands the result to
    the transformer as its pooled projections, and :meth:`forward`, which stands where diffusers' embedder stood, passes it on.
    Parameters keep their diffusers names.
    """

    timestep_embedder: nn.Module
    guidance_embedder: nn.Module
    """Only where guidance is an input."""
    text_embedder: nn.Module

    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        for name, child in embedder.named_children():
            if any(True for _ in child.parameters()):
                self.add_module(name, child)

    def vector(self, timestep: Tensor, guidance: Tensor | None, pooled: Tensor) -> Tensor:
        """``[B, hidden]`` in the dtype of ``pooled`` ``[B, pooled_dim]``. ``timestep`` is float32 ``[B]``; guidance keeps the dtype it has."""
        vector = self.timestep_embedder(sinusoid(timestep).to(pooled.dtype))
        if guidance is not None and hasattr(self, "guidance_embedder"):
            vector = vector + self.guidance_embedder(sinusoid(guidance).to(pooled.dtype))
        out: Tensor = vector + self.text_embedder(pooled)
        return out

    def forward(self, timestep: Tensor, vector: Tensor) -> Tensor:
        return vector


def sinusoid(value: Tensor, factor: float = 1000.0) -> Tensor:
    """``[B]`` -> ``[B, 256]``: cosines, then sines, of ``factor value / 10000^(i/128)``, in the dtype of ``value`` (DDPM's time embedding)."""
    half = _WIDTH // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=value.device))
    angles = (factor * value)[:, None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(value.dtype)
