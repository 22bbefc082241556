"""FLUX.1 (dev, schnell, Kontext, Fill).

Two namings exist. BFL's (Black Forest Labs' reference code, ComfyUI) fuses query, key, value (and the single blocks' MLP input) into one
matrix; diffusers' keeps them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ...errors import BadCheckpoint
from ...parallel.hooks import Gather, Split
from ..adapter import Option
from ..checkpoint import Checkpoint
from ..embeddings import ConditioningVector
from ..family import Arranged, Family, ModelCall
from ..inputs import Input, Inputs, References
from ..keys import KeyMap, Names, Rows, Stack, Swapped, count_blocks, shape_of
from ..norms import use_torchs_epsilon
from ..patches import (
    DEFAULT_REFERENCE_METHOD,
    REFERENCE_METHODS,
    Placement,
    grid_positions,
    pack,
    place_references,
    unpack,
)
from ..references import REFERENCE, reference_method, references

HEAD_DIM: Final = 128
ROTARY_AXES: Final = (16, 56, 56)

_TOP: Final[Names] = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "norm_out.linear": Swapped("final_layer.adaLN_modulation.1"),
    "proj_out": "final_layer.linear",
}
_DOUBLE: Final = Stack(
    "double_blocks",
    {
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
        "attn.to_q": Rows("img_attn.qkv", 0, 1),
        "attn.to_k": Rows("img_attn.qkv", 1, 2),
        "attn.to_v": Rows("img_attn.qkv", 2, 3),
        "attn.add_q_proj": Rows("txt_attn.qkv", 0, 1),
        "attn.add_k_proj": Rows("txt_attn.qkv", 1, 2),
        "attn.add_v_proj": Rows("txt_attn.qkv", 2, 3),
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "attn.norm_q": "img_attn.norm.query_norm",
        "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
    },
)
_SINGLE: Final = Stack(
    "single_blocks",
    {
        "norm.linear": "modulation.lin",
        "attn.to_q": Rows("linear1", 0, 1),
        "attn.to_k": Rows("linear1", 1, 2),
        "attn.to_v": Rows("linear1", 2, 3),
        "proj_mlp": Rows("linear1", 3, 7),
        "proj_out": "linear2",
        "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
    },
)
_STACKS: Final = {"transformer_blocks": _DOUBLE, "single_transformer_blocks": _SINGLE}
_ENCODER: Final = "Use the text encoder that belongs to FLUX.1 (CLIP-L with T5-XXL in published models)"


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxGeometry:
    """Everything that FLUX.1 checkpoints differ in."""

    hidden: int
    depth: int
    """Double-stream blocks."""
    depth_single: int
    in_channels: int
    """Latent channels that the network takes: 16, more with concatenated conditions (Fill: 96)."""
    out_channels: int
    context_dim: int
    """Width of the text encoder's tokens."""
    pooled_dim: int
    guidance: bool
    """Whether guidance is an input (dev) or not (schnell)."""

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.hidden // HEAD_DIM


class Flux(Family[FluxGeometry]):
    """FLUX.1. What ComfyUI's own network does with an input is what happens here, where diffusers' pipelines differ included."""

    name = "flux"
    label = "FLUX.1"
    original_marks = ("double_blocks.0.img_attn.qkv.weight", "img_in.weight", "vector_in.in_layer.weight")
    diffusers_marks = (
        "transformer_blocks.0.attn.add_q_proj.weight",
        "x_embedder.weight",
        "time_text_embed.text_embedder.linear_1.weight",
        "single_transformer_blocks.0.proj_mlp.weight",
    )
    # FLUX.2, Chroma, Ovis, LongCat, HunyuanVideo.
    relatives = (
        "double_stream_modulation_img.",
        "distilled_guidance_layer.",
        "txt_norm.",
        "double_blocks.0.img_mlp.gate_proj.",
        "txt_in.individual_token_refiner.",
    )
    # ComfyUI's own modules name the query and key norms .weight, published files .scale.
    spellings = {"_norm.weight": "_norm.scale"}  # noqa: RUF012 - read only
    splits = (
        Split("hidden_states", "image", 1),
        Split("img_ids", "image", 0),
        Split("encoder_hidden_states", "text", 1),
        Split("txt_ids", "text", 0),
    )
    gather = Gather("proj_out", "image")

    def geometry(self, checkpoint: Checkpoint, named: Callable[[str], str]) -> FluxGeometry:
        hidden, in_features = shape_of(checkpoint, named("x_embedder.weight"))
        out_features = shape_of(checkpoint, named("proj_out.weight"))[0]
        if hidden % HEAD_DIM or in_features % 4 or out_features % 4 or 0 in (hidden, in_features, out_features):
            raise BadCheckpoint(
                f"Choose another checkpoint: a FLUX.1 has a width of whole {HEAD_DIM}-wide heads and 2x2 patches, "
                f"this one is {hidden} wide with {in_features} inputs and {out_features} outputs per token."
            )
        original = self.is_original(checkpoint)
        guidance = named("time_text_embed.guidance_embedder.linear_1.weight").removesuffix("weight")
        return FluxGeometry(
            hidden=hidden,
            depth=count_blocks(checkpoint, "double_blocks" if original else "transformer_blocks"),
            depth_single=count_blocks(checkpoint, "single_blocks" if original else "single_transformer_blocks"),
            in_channels=in_features // 4,
            out_channels=out_features // 4,
            context_dim=shape_of(checkpoint, named("context_embedder.weight"))[1],
            pooled_dim=shape_of(checkpoint, named("time_text_embed.text_embedder.linear_1.weight"))[1],
            guidance=any(name.startswith(guidance) for name in checkpoint.names),
        )

    def num_heads(self, geometry: FluxGeometry) -> int:
        return geometry.num_heads

    def key_map(self, geometry: FluxGeometry | None) -> KeyMap:
        return KeyMap(modules=_TOP, stacks=_STACKS, unit=geometry.hidden if geometry else 0)

    def network(self, geometry: FluxGeometry) -> Any:
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        network: Any = FluxTransformer2DModel(
            in_channels=geometry.in_channels * 4,
            out_channels=geometry.out_channels * 4,
            num_layers=geometry.depth,
            num_single_layers=geometry.depth_single,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=geometry.num_heads,
            joint_attention_dim=geometry.context_dim,
            pooled_projection_dim=geometry.pooled_dim,
            guidance_embeds=geometry.guidance,
            axes_dims_rope=ROTARY_AXES,
        )
        network.time_text_embed = ConditioningVector(network.time_text_embed)
        use_torchs_epsilon(network)
        return network

    def inputs(self, geometry: FluxGeometry) -> Inputs:
        return Inputs(
            label=self.label,
            dims=4,
            channels=geometry.in_channels,
            answer_channels=geometry.out_channels,
            tensors=(
                Input(name="context", dims=3, width=geometry.context_dim, required=True, advice=_ENCODER),
                Input(name="pooled", dims=2, width=geometry.pooled_dim, wider=True, advice=_ENCODER),
                Input(name="guidance", dims=1),
            ),
            references=References(prefix=REFERENCE, dims=4, channels=geometry.in_channels),
            choices=(reference_method(REFERENCE_METHODS),),
        )

    def is_joint_attention(self, name: str) -> bool:
        # Double and single blocks alike attend to text and image together.
        return name.endswith(".attn")

    def arrange(self, network: Any, geometry: FluxGeometry, call: ModelCall) -> Arranged:
        context = call.conditioning["context"]
        tokens, positions = _image_tokens(call)
        height, width = call.x.shape[2:]
        picture_tokens = pack(call.x[:1, :1]).shape[1]
        return Arranged(
            arguments={
                "hidden_states": tokens,
                "encoder_hidden_states": context,
                "pooled_projections": _vector(network, geometry, call),
                "timestep": call.timestep,
                "img_ids": positions,
                "txt_ids": positions.new_zeros(context.shape[1], positions.shape[1]),
            },
            streams={"text": context.shape[1], "image": tokens.shape[1]},
            finish=lambda out: unpack(out[:, :picture_tokens], height, width),
        )


def _vector(network: Any, geometry: FluxGeometry, call: ModelCall) -> Tensor:
    pooled = call.conditioning.get("pooled")
    if pooled is None:
        pooled = call.x.new_zeros(len(call.x), geometry.pooled_dim)
    guidance = call.conditioning.get("guidance")
    vector: Tensor = network.time_text_embed.vector(call.timestep, guidance, pooled[:, : geometry.pooled_dim])
    return vector


def _image_tokens(call: ModelCall) -> tuple[Tensor, Tensor]:
    """Tokens ``[B, S, 4C]`` and positions ``[S, 3]`` of the picture and, behind it, its references."""
    x, others = call.x, references(call.conditioning)
    method: Option = call.options.get("ref_latents_method", DEFAULT_REFERENCE_METHOD)
    sizes = [(reference.shape[2], reference.shape[3]) for reference in others]
    placements = [Placement(0, 0, 0), *place_references(sizes, str(method), (x.shape[2], x.shape[3]))]
    images = [x, *(reference.expand(len(x), -1, -1, -1) for reference in others)]
    positions = [
        grid_positions(image.shape[2], image.shape[3], placement, x.device)
        for image, placement in zip(images, placements, strict=True)
    ]
    return torch.cat([pack(image) for image in images], dim=1), torch.cat(positions)
