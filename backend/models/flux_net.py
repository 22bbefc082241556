"""The FLUX.1 network: diffusers' transformer, with ComfyUI's way of making the conditioning vector."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor, nn

from ..errors import BadCheckpoint
from .checkpoint import Checkpoint, assemble
from .flux_keys import HEAD_DIM, FluxGeometry, source_finder

_ROTARY_AXES = (16, 56, 56)
_EMBEDDING_WIDTH = 256


class ConditioningVector(nn.Module):
    """Timestep, guidance and pooled text as one vector per row, made before the transformer runs.

    diffusers rounds the timestep to the compute dtype before it is embedded, and cannot leave the guidance of a guidance model
    out; ComfyUI keeps the timestep in float32 and does leave it out. So the adapter calls :meth:`vector`, hands the result to
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


def sinusoid(value: Tensor) -> Tensor:
    """``[B]`` -> ``[B, 256]``: cosines, then sines, of ``1000 value / 10000^(i/128)``, in the dtype of ``value`` (DDPM's time embedding)."""
    half = _EMBEDDING_WIDTH // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=value.device))
    angles = (1000 * value)[:, None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(value.dtype)


def empty_network(geometry: FluxGeometry) -> Any:
    """The network on the meta device."""
    with torch.device("meta"):
        network = FluxTransformer2DModel(
            in_channels=geometry.in_channels * 4,
            out_channels=geometry.out_channels * 4,
            num_layers=geometry.depth,
            num_single_layers=geometry.depth_single,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=geometry.num_heads,
            joint_attention_dim=geometry.context_dim,
            pooled_projection_dim=geometry.pooled_dim,
            guidance_embeds=geometry.guidance,
            axes_dims_rope=_ROTARY_AXES,
        )
    network.time_text_embed = ConditioningVector(network.time_text_embed)
    for module in network.modules():
        if isinstance(module, nn.RMSNorm):
            # ComfyUI's query and key norms have torch's own epsilon for the dtype, diffusers' 1e-6: with trained weights it shows.
            module.eps = None
    return network.requires_grad_(False).eval()


def load_network(
    checkpoint: Checkpoint,
    geometry: FluxGeometry,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float], None],
) -> Any:
    """The network with the weights of ``checkpoint``. Raises :class:`BadCheckpoint`."""
    network = empty_network(geometry)
    find = source_finder(checkpoint, geometry)
    state = assemble(checkpoint, network.state_dict(), find, dtype=dtype, device=device, progress=progress)
    network.load_state_dict(state, strict=True, assign=True)
    if stray := [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]:
        raise BadCheckpoint(f"Choose another checkpoint: nothing in it fills {', '.join(stray[:8])}.")
    return network
