"""The networks and calls that the benchmark times: published geometries with random weights, drawn where they compute.

Weights are scaled by their fan-in and norms lie near 1, so that activations keep a sane size through any depth: a kernel's time can depend on
NaN and denormal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ...backend.errors import InternalError
from ...backend.models.families.flux import Flux, FluxGeometry
from ...backend.models.families.qwen_image import QwenImage, QwenImageGeometry
from ...backend.models.families.wan import Wan, WanGeometry
from ...backend.models.family import Family, ModelCall

SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """One network, and one call of it."""

    name: str
    family: Family[Any]
    geometry: Any
    dtype: torch.dtype
    x: tuple[int, ...]
    """The latent's shape."""
    conditioning: Mapping[str, tuple[int, ...]]
    """Name -> shape."""
    says: str
    """For people."""

    @property
    def heads(self) -> int:
        """What a ulysses degree must divide."""
        return self.family.num_heads(self.geometry)


def _flux(
    name: str, dtype: torch.dtype, geometry: FluxGeometry, x: tuple[int, ...], tokens: int, says: str
) -> StepModel:
    conditioning = {
        "context": (1, tokens, geometry.context_dim),
        "pooled": (1, geometry.pooled_dim),
        "guidance": (1,),
    }
    return StepModel(
        name=name, family=Flux(), geometry=geometry, dtype=dtype, x=x, conditioning=conditioning, says=says
    )


def _flux_geometry(hidden: int, depth: int, depth_single: int, context_dim: int, pooled_dim: int) -> FluxGeometry:
    return FluxGeometry(
        hidden=hidden,
        depth=depth,
        depth_single=depth_single,
        in_channels=16,
        out_channels=16,
        context_dim=context_dim,
        pooled_dim=pooled_dim,
        guidance=True,
    )


MODELS: Final = {
    model.name: model
    for model in (
        _flux(
            "flux-512",
            torch.float32,
            _flux_geometry(512, 2, 4, 64, 32),
            (1, 16, 64, 32),
            64,
            "FLUX.1 of hidden size 512 with 2 + 4 blocks, 512 image and 64 text tokens, fp32",
        ),
        _flux(
            "flux-dev",
            torch.bfloat16,
            _flux_geometry(3072, 19, 38, 4096, 768),
            (1, 16, 128, 128),
            512,
            "FLUX.1-dev at 1024 x 1024: 4,096 image and 512 text tokens, bf16",
        ),
        StepModel(
            name="qwen-image",
            family=QwenImage(),
            geometry=QwenImageGeometry(hidden=3072, depth=60, context_dim=3584),
            dtype=torch.bfloat16,
            x=(1, 16, 1, 166, 166),
            conditioning={"context": (1, 201, 3584)},
            says="Qwen-Image at 1328 x 1328: 6,889 image and 201 text tokens, bf16",
        ),
        StepModel(
            name="wan-1.3b",
            family=Wan(),
            geometry=WanGeometry(
                hidden=1536,
                depth=30,
                ffn_dim=8960,
                in_channels=16,
                out_channels=16,
                text_dim=4096,
                image_dim=None,
                image_positions=None,
            ),
            dtype=torch.bfloat16,
            x=(1, 16, 21, 60, 104),
            conditioning={"context": (1, 512, 4096)},
            says="Wan 2.1 1.3B, 81 frames of 832 x 480: 32,760 video tokens, bf16",
        ),
    )
}


def draw_network(model: StepModel, device: torch.device) -> Any:
    """The network with random weights on ``device``, the same on like devices."""
    generator = torch.Generator(device).manual_seed(SEED)

    def drawn(name: str, shape: torch.Size) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device, dtype=model.dtype)
        if len(shape) == 1 and "norm" in name and name.endswith(".weight"):
            return values.mul_(0.1).add_(1)
        return values.mul_(0.05 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:])))

    network = model.family.empty_network(model.geometry)
    return _filled(network, {name: drawn(name, empty.shape) for name, empty in network.state_dict().items()})


def twin_of(network: Any, model: StepModel) -> Any:
    """Another network over the same weights: each contestant hooks into one of its own."""
    return _filled(model.family.empty_network(model.geometry), network.state_dict())


def _filled(network: Any, state: Mapping[str, Tensor]) -> Any:
    network.load_state_dict(state, strict=True, assign=True)
    stray = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
    if stray:
        raise InternalError(f"Nothing fills {', '.join(stray[:8])}.")
    return network.requires_grad_(False).eval()


def draw_call(model: StepModel, device: torch.device) -> ModelCall:
    """The inputs of the one call that everybody makes, the same on like devices."""
    generator = torch.Generator(device).manual_seed(SEED + 1)

    def drawn(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=model.dtype)

    return ModelCall(
        x=drawn(model.x),
        timestep=torch.full((model.x[0],), 0.5, device=device),
        conditioning={name: drawn(shape) for name, shape in model.conditioning.items()},
        options={},
    )
