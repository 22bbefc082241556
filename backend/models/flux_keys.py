"""FLUX.1 checkpoints: what a file's names and shapes tell about the network, and where each parameter lies in the file.

Two namings exist. BFL's (Black Forest Labs' reference code, ComfyUI) fuses query, key, value (and the single blocks' MLP input) into one matrix;
diffusers' keeps them apart. The network that we run is diffusers', so a fused matrix is read in row slices: views of the mapped file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import BadCheckpoint
from .checkpoint import Checkpoint, Source

HEAD_DIM = 128
"""Rotary axes 16 + 56 + 56; every FLUX.1 has it."""

# Modules whose parameters (weight, bias) only change their name: diffusers -> BFL.
_TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
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
}
_SINGLE = {
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
# Modules that are a part of a fused matrix: diffusers -> (BFL, first row, last row), rows in units of the hidden size.
_DOUBLE_FUSED = {
    "attn.to_q": ("img_attn.qkv", 0, 1),
    "attn.to_k": ("img_attn.qkv", 1, 2),
    "attn.to_v": ("img_attn.qkv", 2, 3),
    "attn.add_q_proj": ("txt_attn.qkv", 0, 1),
    "attn.add_k_proj": ("txt_attn.qkv", 1, 2),
    "attn.add_v_proj": ("txt_attn.qkv", 2, 3),
}
_SINGLE_FUSED = {
    "attn.to_q": ("linear1", 0, 1),
    "attn.to_k": ("linear1", 1, 2),
    "attn.to_v": ("linear1", 2, 3),
    "proj_mlp": ("linear1", 3, 7),
}
# Names that a FLUX.1 lacks and its relatives have (FLUX.2, Chroma, Ovis, LongCat, HunyuanVideo).
_RELATIVES = (
    "double_stream_modulation_img.",
    "distilled_guidance_layer.",
    "txt_norm.",
    "double_blocks.0.img_mlp.gate_proj.",
    "txt_in.individual_token_refiner.",
)


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


def is_bfl(checkpoint: Checkpoint) -> bool:
    """Whether the names are BFL's."""
    return (
        "double_blocks.0.img_attn.qkv.weight" in checkpoint
        and "img_in.weight" in checkpoint
        and "vector_in.in_layer.weight" in checkpoint
    )


def is_diffusers(checkpoint: Checkpoint) -> bool:
    """Whether the names are diffusers'."""
    needed = (
        "transformer_blocks.0.attn.add_q_proj.weight",
        "x_embedder.weight",
        "time_text_embed.text_embedder.linear_1.weight",
    )
    return all(name in checkpoint for name in needed) and "single_transformer_blocks.0.proj_mlp.weight" in checkpoint


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether this is a FLUX.1 network, by names alone."""
    if any(name.startswith(_RELATIVES) for name in checkpoint.names):
        return False
    return is_bfl(checkpoint) or is_diffusers(checkpoint)


def geometry_of(checkpoint: Checkpoint) -> FluxGeometry:
    """Read the geometry off the shapes. Raises :class:`BadCheckpoint` where they contradict each other."""
    bfl = is_bfl(checkpoint)
    blocks, singles = ("double_blocks", "single_blocks") if bfl else ("transformer_blocks", "single_transformer_blocks")

    def shape(module: str) -> tuple[int, int]:
        name = f"{_TOP[module] if bfl else module}.weight"
        if name not in checkpoint:
            raise BadCheckpoint(f"Download the checkpoint again, or choose a complete one: {name} is missing.")
        found = checkpoint.shape(name)
        if len(found) != 2:
            raise BadCheckpoint(f"Choose another checkpoint: {name} is not a matrix but {list(found)}.")
        return found[0], found[1]

    hidden, in_features = shape("x_embedder")
    out_features = shape("proj_out")[0]
    if hidden % HEAD_DIM or in_features % 4 or out_features % 4 or 0 in (hidden, in_features, out_features):
        raise BadCheckpoint(
            f"Choose another checkpoint: a FLUX.1 has a width of whole {HEAD_DIM}-wide heads and 2x2 patches, "
            f"this one is {hidden} wide with {in_features} inputs and {out_features} outputs per token."
        )
    return FluxGeometry(
        hidden=hidden,
        depth=_count_blocks(checkpoint, blocks),
        depth_single=_count_blocks(checkpoint, singles),
        in_channels=in_features // 4,
        out_channels=out_features // 4,
        context_dim=shape("context_embedder")[1],
        pooled_dim=shape("time_text_embed.text_embedder.linear_1")[1],
        guidance=any(
            name.startswith(("guidance_in.", "time_text_embed.guidance_embedder.")) for name in checkpoint.names
        ),
    )


def _count_blocks(checkpoint: Checkpoint, prefix: str) -> int:
    indices = {name.split(".")[1] for name in checkpoint.names if name.startswith(f"{prefix}.")}
    count = 0
    while str(count) in indices:
        count += 1
    return count


def source_finder(checkpoint: Checkpoint, geometry: FluxGeometry) -> Callable[[str], Source]:
    """For a parameter of the diffusers network, where it lies in this file."""
    if not is_bfl(checkpoint):
        return Source

    def find(name: str) -> Source:
        source = bfl_source(name, geometry.hidden)
        # Published files name the query and key norms .scale, ComfyUI's own modules .weight.
        if source.name.endswith("_norm.weight") and source.name not in checkpoint:
            return Source(source.name.removesuffix("weight") + "scale")
        return source

    return find


def bfl_source(name: str, hidden: int) -> Source:
    """The BFL tensor, and the rows of it, behind a parameter of the diffusers network. ``KeyError`` for a name that FLUX.1 lacks."""
    module, _, leaf = name.rpartition(".")
    if module in _TOP:
        # BFL's final modulation gives (shift, scale), diffusers' expects (scale, shift).
        return Source(f"{_TOP[module]}.{leaf}", swap_halves=module == "norm_out.linear")
    stack, index, inner = module.split(".", 2)
    target, plain, fused = {
        "transformer_blocks": ("double_blocks", _DOUBLE, _DOUBLE_FUSED),
        "single_transformer_blocks": ("single_blocks", _SINGLE, _SINGLE_FUSED),
    }[stack]
    if inner in plain:
        return Source(f"{target}.{index}.{plain[inner]}.{leaf}")
    matrix, first, last = fused[inner]
    return Source(f"{target}.{index}.{matrix}.{leaf}", rows=(first * hidden, last * hidden))
