"""FLUX.1 (dev, schnell, Kontext, Fill): ComfyUI's transformer inputs in, velocity out.

What ComfyUI's own network does with an input is what happens here, where diffusers' pipelines differ included; the tests compare the two
networks number by number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import BadRequest, InternalError, UnsupportedInput, WrongFamily
from ..parallel.hooks import Gather, Split
from ..parallel.mesh import SequenceMesh
from ..parallel.seam import Binding, bind
from .adapter import CallSpec, Option
from .checkpoint import Checkpoint
from .flux_keys import FluxGeometry, geometry_of, recognises
from .flux_net import load_network
from .flux_tokens import (
    DEFAULT_REFERENCE_METHOD,
    REFERENCE_METHODS,
    Placement,
    grid_positions,
    pack,
    place_references,
    unpack,
)

_SPLITS = (
    Split("hidden_states", "image", 1),
    Split("img_ids", "image", 0),
    Split("encoder_hidden_states", "text", 1),
    Split("txt_ids", "text", 0),
)
_GATHER = Gather("proj_out", "image")
_REFERENCE = "ref_latents."


class FluxAdapter:
    """One FLUX.1 network. See :class:`.adapter.Adapter`."""

    def __init__(self, network: Any, geometry: FluxGeometry, dtype: torch.dtype, device: torch.device) -> None:
        self.network = network
        self.geometry = geometry
        self.dtype = dtype
        self.device = device
        self._binding: Binding | None = None

    def bind(self, mesh: SequenceMesh) -> None:
        if self._binding is not None:
            if self._binding.mesh is mesh:
                return
            self._binding.remove()
        # Double and single blocks alike attend to text and image together.
        self._binding = bind(
            self.network, mesh, splits=_SPLITS, gather=_GATHER, is_joint_attention=lambda name: name.endswith(".attn")
        )

    def check(self, request: CallSpec) -> None:
        _check_latent(request.x_shape, self.geometry)
        _check_text(request, self.geometry)
        _check_references(request)

    def velocity(
        self, x: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor], options: Mapping[str, Option]
    ) -> Tensor:
        if self._binding is None:
            raise InternalError("A model has to be bound to a mesh before it runs.")
        x = self._here(x)
        context = self._here(conditioning["context"])
        tokens, positions = self._image_tokens(x, _references(conditioning), options)
        with torch.no_grad(), self._binding.call({"text": context.shape[1], "image": tokens.shape[1]}):
            out = self.network(
                hidden_states=tokens,
                encoder_hidden_states=context,
                pooled_projections=self._conditioning_vector(timestep, conditioning, len(x)),
                timestep=timestep,
                img_ids=positions,
                txt_ids=positions.new_zeros(context.shape[1], positions.shape[1]),
                return_dict=False,
            )[0]
        height, width = x.shape[2:]
        picture_tokens = pack(x[:1, :1]).shape[1]
        return unpack(out[:, :picture_tokens], height, width).float()

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.device, dtype=self.dtype)

    def _conditioning_vector(self, timestep: Tensor, conditioning: Mapping[str, Tensor], batch: int) -> Tensor:
        guidance, pooled = conditioning.get("guidance"), conditioning.get("pooled")
        if pooled is None:
            pooled = torch.zeros(batch, self.geometry.pooled_dim, dtype=self.dtype, device=self.device)
        vector: Tensor = self.network.time_text_embed.vector(
            timestep.to(device=self.device, dtype=torch.float32),
            None if guidance is None else self._here(guidance),
            self._here(pooled)[:, : self.geometry.pooled_dim],
        )
        return vector

    def _image_tokens(
        self, x: Tensor, references: list[Tensor], options: Mapping[str, Option]
    ) -> tuple[Tensor, Tensor]:
        """Tokens ``[B, S, 4C]`` and positions ``[S, 3]`` of the picture and, behind it, its references."""
        method = str(options.get("ref_latents_method", DEFAULT_REFERENCE_METHOD))
        sizes = [(reference.shape[2], reference.shape[3]) for reference in references]
        placements = [Placement(0, 0, 0), *place_references(sizes, method, (x.shape[2], x.shape[3]))]
        images = [x, *(self._here(reference).expand(len(x), -1, -1, -1) for reference in references)]
        positions = [
            grid_positions(image.shape[2], image.shape[3], placement, self.device)
            for image, placement in zip(images, placements, strict=True)
        ]
        return torch.cat([pack(image) for image in images], dim=1), torch.cat(positions)


def _references(conditioning: Mapping[str, Tensor]) -> list[Tensor]:
    count = sum(name.startswith(_REFERENCE) for name in conditioning)
    return [conditioning[f"{_REFERENCE}{number}"] for number in range(count)]


def _check_latent(shape: tuple[int, ...], geometry: FluxGeometry) -> None:
    if len(shape) != 4 or 0 in shape:
        raise WrongFamily(
            f"Use an image latent of FLUX.1: got a latent of shape {list(shape)}, FLUX.1 takes [batch, channels, height, width]."
        )
    if shape[1] != geometry.in_channels:
        raise WrongFamily(
            f"Use a latent (and concatenated conditions) that belong to this FLUX.1 checkpoint: got {shape[1]} channels, "
            f"this checkpoint takes {geometry.in_channels}."
        )


def _check_text(request: CallSpec, geometry: FluxGeometry) -> None:
    batch, shapes = request.x_shape[0], request.conditioning
    context = shapes.get("context")
    if context is None or len(context) != 3 or 0 in context:
        raise BadRequest(
            f"Connect a text conditioning: FLUX.1 needs [batch, tokens, {geometry.context_dim}], got {context and list(context)}."
        )
    if context[2] != geometry.context_dim:
        raise WrongFamily(
            "Use the text encoder that belongs to FLUX.1 (CLIP-L with T5-XXL in published models): "
            f"got context width {context[2]}, this checkpoint takes {geometry.context_dim}."
        )
    pooled = shapes.get("pooled")
    # A wider vector is cut, as in ComfyUI.
    if pooled is not None and (len(pooled) != 2 or pooled[1] < geometry.pooled_dim):
        raise WrongFamily(
            "Use the text encoder that belongs to FLUX.1 (CLIP-L with T5-XXL in published models): "
            f"got a pooled vector of shape {list(pooled)}, this checkpoint takes {geometry.pooled_dim} wide ones."
        )
    guidance = shapes.get("guidance")
    if guidance is not None and len(guidance) != 1:
        raise BadRequest(f"Give guidance as one number per picture: got shape {list(guidance)}.")
    for name, shape in (("context", context), ("pooled", pooled), ("guidance", guidance)):
        if shape is not None and shape[0] != batch:
            raise BadRequest(f"Give {name} for every picture of the batch: got {shape[0]}, the batch has {batch}.")


def _check_references(request: CallSpec) -> None:
    batch, channels = request.x_shape[:2]
    references = sorted(name for name in request.conditioning if name.startswith(_REFERENCE))
    if references != sorted(f"{_REFERENCE}{number}" for number in range(len(references))):
        raise BadRequest(f"Number the reference images from 0 without gaps: got {', '.join(references)[:200]}.")
    if unknown := sorted(set(request.conditioning) - {"context", "pooled", "guidance", *references}):
        raise UnsupportedInput(f"Disconnect what gives {', '.join(unknown)[:200]}: FLUX.1 has no such input.")
    if unknown := sorted(set(request.options) - {"ref_latents_method"}):
        raise UnsupportedInput(f"Disconnect what sets {', '.join(unknown)[:200]}: FLUX.1 has no such option here.")
    for name in references:
        shape = request.conditioning[name]
        if len(shape) != 4 or 0 in shape or shape[0] not in (1, batch) or shape[1] != channels:
            raise WrongFamily(
                f"Encode the reference image with the VAE of FLUX.1: {name} has shape {list(shape)}, "
                f"needed is [1 or {batch}, {channels}, height, width]."
            )
    method = request.options.get("ref_latents_method", DEFAULT_REFERENCE_METHOD)
    if references and method not in REFERENCE_METHODS:
        raise UnsupportedInput(
            f"Choose the reference method {', '.join(REFERENCE_METHODS[:-1])} or {REFERENCE_METHODS[-1]}: "
            f"{str(method)[:40]!r} does not work with FLUX.1."
        )


class FluxFamily:
    """How the registry finds and loads FLUX.1."""

    name = "flux"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        return recognises(checkpoint)

    def load(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, progress: Callable[[float], None]
    ) -> tuple[FluxAdapter, int]:
        geometry = geometry_of(checkpoint)
        network = load_network(checkpoint, geometry, dtype=dtype, device=device, progress=progress)
        return FluxAdapter(network, geometry, dtype, device), geometry.num_heads
