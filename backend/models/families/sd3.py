"""Stable Diffusion 3 (medium) and 3.5 (large; medium, whose first blocks attend to the image a second time).

Two namings exist. The original one (Stability AI's reference code, ComfyUI) fuses query, key and value into one matrix; diffusers' keeps
them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...errors import BadCheckpoint
from ...parallel.hooks import Gather, Split, SplitOutput
from ..checkpoint import Checkpoint
from ..family import Arranged, Family, ModelCall
from ..inputs import Input, Inputs
from ..keys import KeyMap, Names, Rows, Stack, Swapped, count_blocks, shape_of
from ..patches import PATCH, pad_to_patches

HEAD_DIM: Final = 64
_TEXT: Final = "text"
_IMAGE: Final = "image"

_TOP: Final[Names] = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": Swapped("final_layer.adaLN_modulation.1"),
    "proj_out": "final_layer.linear",
}
_BLOCKS: Final = Stack(
    "joint_blocks",
    {
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "attn.to_q": Rows("x_block.attn.qkv", 0, 1),
        "attn.to_k": Rows("x_block.attn.qkv", 1, 2),
        "attn.to_v": Rows("x_block.attn.qkv", 2, 3),
        "attn.add_q_proj": Rows("context_block.attn.qkv", 0, 1),
        "attn.add_k_proj": Rows("context_block.attn.qkv", 1, 2),
        "attn.add_v_proj": Rows("context_block.attn.qkv", 2, 3),
        "attn.to_out.0": "x_block.attn.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "attn.norm_q": "x_block.attn.ln_q",
        "attn.norm_k": "x_block.attn.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q",
        "attn.norm_added_k": "context_block.attn.ln_k",
        "attn2.to_q": Rows("x_block.attn2.qkv", 0, 1),
        "attn2.to_k": Rows("x_block.attn2.qkv", 1, 2),
        "attn2.to_v": Rows("x_block.attn2.qkv", 2, 3),
        "attn2.to_out.0": "x_block.attn2.proj",
        "attn2.norm_q": "x_block.attn2.ln_q",
        "attn2.norm_k": "x_block.attn2.ln_k",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
    },
)
_ENCODER: Final = (
    "Use the text encoders that belong to Stable Diffusion 3 (CLIP-L, CLIP-G and T5-XXL in published models)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sd3Geometry:
    """Everything that SD3 checkpoints differ in."""

    hidden: int
    """Width; as many blocks as it has heads."""
    dual: tuple[int, ...]
    """Blocks that attend to the image a second time."""
    in_channels: int
    out_channels: int
    context_dim: int
    """Width of the text encoders' tokens."""
    pooled_dim: int
    table_side: int
    """Patches along a side of the position table."""
    qk_norm: bool
    """Whether queries and keys are normalised (3.5) or not (3)."""

    @property
    def num_heads(self) -> int:
        """Attention heads, and blocks."""
        return self.hidden // HEAD_DIM


class Sd3(Family[Sd3Geometry]):
    """Stable Diffusion 3 and 3.5."""

    name = "sd3"
    label = "SD3"
    original_marks = (
        "joint_blocks.0.context_block.attn.qkv.weight",
        "x_embedder.proj.weight",
        "final_layer.linear.weight",
    )
    diffusers_marks = (
        "transformer_blocks.0.attn.add_q_proj.weight",
        "pos_embed.proj.weight",
        "time_text_embed.text_embedder.linear_1.weight",
        "proj_out.weight",
    )
    # Networks that refine or prefix the text, ControlNets, IP-Adapters.
    relatives = ("context_processor.", "register", "controlnet_blocks.", "pos_embed_input.", "image_proj.")
    splits = (
        SplitOutput("pos_embed", 0, _IMAGE, 1),
        Split("encoder_hidden_states", _TEXT, 1),
    )
    gather = Gather("proj_out", _IMAGE)

    def geometry(self, checkpoint: Checkpoint, named: Callable[[str], str]) -> Sd3Geometry:
        hidden, in_channels, *patch = shape_of(checkpoint, named("pos_embed.proj.weight"), dims=4)
        outputs = shape_of(checkpoint, named("proj_out.weight"))[0]
        if hidden % HEAD_DIM or patch != [PATCH, PATCH] or outputs % PATCH**2 or 0 in (hidden, in_channels, outputs):
            raise BadCheckpoint(
                f"Choose another checkpoint: an SD3 has a width of whole {HEAD_DIM}-wide heads and {PATCH}x{PATCH} patches, "
                f"this one is {hidden} wide with patches of {patch} and {outputs} outputs per token."
            )
        depth = count_blocks(checkpoint, "joint_blocks" if self.is_original(checkpoint) else "transformer_blocks")
        # ComfyUI derives the number of blocks from the width: it would run another network than the file's.
        if depth != hidden // HEAD_DIM:
            raise BadCheckpoint(
                f"Choose another checkpoint: an SD3 that is {hidden} wide has {hidden // HEAD_DIM} blocks, this one has {depth}."
            )
        positions = shape_of(checkpoint, named("pos_embed.pos_embed"), dims=3)[1]
        side = math.isqrt(positions)
        if side * side != positions or not side:
            raise BadCheckpoint(
                f"Choose another checkpoint: an SD3 has a square table of positions, this one has {positions} of them."
            )
        return Sd3Geometry(
            hidden=hidden,
            dual=tuple(
                index for index in range(depth) if named(f"transformer_blocks.{index}.attn2.to_q.weight") in checkpoint
            ),
            in_channels=in_channels,
            out_channels=outputs // PATCH**2,
            context_dim=shape_of(checkpoint, named("context_embedder.weight"))[1],
            pooled_dim=shape_of(checkpoint, named("time_text_embed.text_embedder.linear_1.weight"))[1],
            table_side=side,
            qk_norm=named("transformer_blocks.0.attn.norm_added_q.weight") in checkpoint,
        )

    def num_heads(self, geometry: Sd3Geometry) -> int:
        return geometry.num_heads

    def key_map(self, geometry: Sd3Geometry | None) -> KeyMap:
        if geometry is None:
            return KeyMap(modules=_TOP, stacks={"transformer_blocks": _BLOCKS})
        # The last block has no text output: its text is only shifted and scaled, which diffusers wants the other way round.
        last = geometry.num_heads - 1
        text_norm = Swapped(f"joint_blocks.{last}.context_block.adaLN_modulation.1")
        return KeyMap(
            modules={**_TOP, f"transformer_blocks.{last}.norm1_context.linear": text_norm},
            stacks={"transformer_blocks": _BLOCKS},
            unit=geometry.hidden,
        )

    def network(self, geometry: Sd3Geometry) -> Any:
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        network: Any = SD3Transformer2DModel(
            patch_size=PATCH,
            in_channels=geometry.in_channels,
            out_channels=geometry.out_channels,
            num_layers=geometry.num_heads,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=geometry.num_heads,
            joint_attention_dim=geometry.context_dim,
            caption_projection_dim=geometry.hidden,
            pooled_projection_dim=geometry.pooled_dim,
            pos_embed_max_size=geometry.table_side,
            dual_attention_layers=geometry.dual,
            qk_norm="rms_norm" if geometry.qk_norm else None,
        )
        network.time_text_embed = TimeAndText(network.time_text_embed)
        for block in network.transformer_blocks:
            block.attn.set_processor(SeamAttention())
            if block.attn2 is not None:
                block.attn2.set_processor(SeamAttention())
        return network

    def inputs(self, geometry: Sd3Geometry) -> Inputs:
        return Inputs(
            label=self.label,
            dims=4,
            channels=geometry.in_channels,
            answer_channels=geometry.out_channels,
            largest_side=geometry.table_side * PATCH,
            tensors=(
                Input(name="context", dims=3, width=geometry.context_dim, required=True, advice=_ENCODER),
                Input(name="pooled", dims=2, width=geometry.pooled_dim, advice=_ENCODER),
            ),
        )

    def is_joint_attention(self, name: str) -> bool:
        return name.endswith((".attn", ".attn2"))

    def streams_of(self, name: str) -> tuple[str, ...]:
        return (_IMAGE,) if name.endswith(".attn2") else ()

    def arrange(self, network: Any, geometry: Sd3Geometry, call: ModelCall) -> Arranged:
        context = call.conditioning["context"]
        height, width = call.x.shape[2:]
        x = pad_to_patches(call.x)
        return Arranged(
            arguments={
                "hidden_states": x,
                "encoder_hidden_states": context,
                "pooled_projections": call.conditioning.get("pooled"),
                "timestep": call.timestep,
            },
            streams={_TEXT: context.shape[1], _IMAGE: (x.shape[2] // PATCH) * (x.shape[3] // PATCH)},
            finish=lambda out: out[:, :, :height, :width],
        )


class TimeAndText(nn.Module):
    """Timestep and pooled text as one vector. diffusers needs a pooled text; in ComfyUI a conditioning may have none, and adds nothing then."""

    time_proj: nn.Module
    timestep_embedder: Any
    text_embedder: nn.Module

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.time_proj, self.timestep_embedder = embedder.time_proj, embedder.timestep_embedder
        self.text_embedder = embedder.text_embedder

    def forward(self, timestep: Tensor, pooled: Tensor | None) -> Tensor:
        """``[B]`` float32 and ``[B, pooled_dim]`` -> ``[B, hidden]``."""
        dtype = self.timestep_embedder.linear_1.weight.dtype
        vector: Tensor = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        return vector if pooled is None else vector + self.text_embedder(pooled)


class SeamAttention:
    """Text and image together, or, as the second attention of a dual block, the image alone.

    diffusers' processor asks for no backend, and the two attentions of a dual block share one.
    """

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(self) -> None:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        self._dispatch = dispatch_attention_fn

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        image = _project(attn, hidden_states, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        if encoder_hidden_states is None:
            alone: Tensor = attn.to_out[0](self._attend(image))
            return alone
        text = _project(
            attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")
        )
        out = self._attend([torch.cat(pair, dim=1) for pair in zip(text, image, strict=True)])
        tokens = encoder_hidden_states.shape[1]
        text_out, image_out = out[:, :tokens], out[:, tokens:]
        # The last block's text goes nowhere.
        return attn.to_out[0](image_out), text_out if attn.to_add_out is None else attn.to_add_out(text_out)

    def _attend(self, query_key_value: list[Tensor]) -> Tensor:
        """``3 x [B, n, H, D]`` -> ``[B, n, H D]``."""
        query, key, value = query_key_value
        out: Tensor = self._dispatch(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return out.flatten(2)


def _project(attn: Any, tokens_BnC: Tensor, projections: tuple[str, str, str], norms: tuple[str, str]) -> list[Tensor]:
    """Query, key and value, ``3 x [B, n, H, D]``."""
    query, key, value = (getattr(attn, name)(tokens_BnC).unflatten(2, (attn.heads, -1)) for name in projections)
    norm_query, norm_key = (getattr(attn, name) for name in norms)
    if norm_query is not None:
        query, key = norm_query(query), norm_key(key)
    return [query, key, value]
