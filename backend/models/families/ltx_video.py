"""LTX-Video 0.9: text to video, image to video by a timestep per token, and guides (keyframes behind the video that are cut off afterwards).

What its files differ in and no shape tells (heads, how time is counted) lies in their metadata, under ``config``, where ComfyUI reads it too.

Shape letters: B batch, C latent channels, F, H and W latent frames, height and width, S = F H W tokens, K guide tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ...errors import BadCheckpoint, BadRequest
from ...parallel.hooks import Gather, Split
from ..adapter import CallSpec
from ..checkpoint import Checkpoint
from ..family import Arranged, Family, ModelCall
from ..inputs import Input, Inputs, Number
from ..keys import KeyMap, Stack, count_blocks, shape_of

DEFAULT_HEADS: Final = 32
DEFAULT_FRAME_RATE: Final = 25
SCALES: Final = (8, 32, 32)
"""Frames and pixels that one step of the latent stands for: time, height, width."""
_VIDEO: Final = "video"

_TOP: Final = {
    "proj_in": "patchify_proj",
    "time_embed.emb.timestep_embedder.linear_1": "adaln_single.emb.timestep_embedder.linear_1",
    "time_embed.emb.timestep_embedder.linear_2": "adaln_single.emb.timestep_embedder.linear_2",
    "time_embed.linear": "adaln_single.linear",
    "caption_projection.linear_1": "caption_projection.linear_1",
    "caption_projection.linear_2": "caption_projection.linear_2",
    "scale_shift_table": "scale_shift_table",
    "proj_out": "proj_out",
}
_BLOCKS: Final = Stack(
    "transformer_blocks",
    {
        **{
            f"{attention}.{module}": f"{attention}.{module}"
            for attention in ("attn1", "attn2")
            for module in ("to_q", "to_k", "to_v", "to_out.0")
        },
        "attn1.norm_q": "attn1.q_norm",
        "attn1.norm_k": "attn1.k_norm",
        "attn2.norm_q": "attn2.q_norm",
        "attn2.norm_k": "attn2.k_norm",
        "ff.net.0.proj": "ff.net.0.proj",
        "ff.net.2": "ff.net.2",
        "scale_shift_table": "scale_shift_table",
    },
)
# What the metadata may say of networks that are not LTX-Video 0.9 (LTX-2), and what it has to say, if anything.
_FIXED: Final[Mapping[str, Any]] = {
    "rope_type": "interleaved",
    "frequencies_precision": "float32",
    "use_middle_indices_grid": False,
    "caption_proj_before_connector": False,
    "cross_attention_adaln": False,
    "vae_scale_factors": list(SCALES),
}
_ENCODER: Final = "Use the text encoder that belongs to LTX-Video (T5-XXL in published models)"
_GUIDES: Final = "Connect the latent that the guides were added to (LTXVAddGuide)"


@dataclass(frozen=True, slots=True, kw_only=True)
class LtxVideoGeometry:
    """Everything that LTX-Video checkpoints differ in. The defaults are ComfyUI's for files without metadata."""

    hidden: int
    depth: int
    channels: int
    """Of the latent: 128 in published models."""
    text_dim: int
    num_heads: int = DEFAULT_HEADS
    causal: bool = False
    """Whether the first latent frame stands for one frame of the video, and not for eight (0.9.5 and on)."""
    timestep_scale: float = 1000.0
    extents: tuple[float, float, float] = (20.0, 2048.0, 2048.0)
    """Seconds, height and width in pixels at which a rotary position is 1."""


class LtxVideo(Family[LtxVideoGeometry]):
    """LTX-Video 0.9.x."""

    name = "ltx_video"
    label = "LTX-Video"
    original_marks = (
        "patchify_proj.weight",
        "adaln_single.linear.weight",
        "caption_projection.linear_2.weight",
        "transformer_blocks.0.attn2.q_norm.weight",
    )
    diffusers_marks = (
        "proj_in.weight",
        "time_embed.linear.weight",
        "caption_projection.linear_2.weight",
        "transformer_blocks.0.attn2.norm_q.weight",
    )
    # LTX-2 in ComfyUI's names and in diffusers'.
    relatives = (
        "audio_", "av_ca_", "av_cross_attn_", "prompt_adaln", "video_embeddings_connector.", "keyframes_abs_pos_embedding",
        "transformer_blocks.0.audio_", "transformer_blocks.0.prompt_scale_shift_table", "transformer_blocks.0.attn1.to_gate_logits.",
    )  # fmt: skip
    splits = (
        Split("hidden_states", _VIDEO, 1),
        Split("timestep", _VIDEO, 1, only_with_dims=2),
        # Cut before the angles are made of them: each rank makes its own.
        Split("video_coords", _VIDEO, 2),
    )
    gather = Gather("proj_out", _VIDEO)

    def geometry(self, checkpoint: Checkpoint, named: Callable[[str], str]) -> LtxVideoGeometry:
        hidden, channels = shape_of(checkpoint, named("proj_in.weight"))
        config = _config(checkpoint)
        heads = config.get("num_attention_heads", DEFAULT_HEADS)
        # Even: rotary angles belong to pairs of one head.
        if type(heads) is not int or heads < 1 or hidden % (2 * heads) or 0 in (hidden, channels):
            raise BadCheckpoint(
                f"Choose another checkpoint: an LTX-Video has heads of an even width, this one is {hidden} wide with {heads} heads "
                f"and {channels} channels."
            )
        extents = config.get("positional_embedding_max_pos", [20, 2048, 2048])
        if type(extents) is not list or len(extents) != 3:
            raise _damaged("positional_embedding_max_pos", extents)
        time, height, width = (_positive(extent, "positional_embedding_max_pos") for extent in extents)
        return LtxVideoGeometry(
            hidden=hidden,
            depth=count_blocks(checkpoint, "transformer_blocks"),
            channels=channels,
            text_dim=shape_of(checkpoint, named("caption_projection.linear_1.weight"))[1],
            num_heads=heads,
            causal=bool(config.get("causal_temporal_positioning", False)),
            timestep_scale=_positive(config.get("timestep_scale_multiplier", 1000.0), "timestep_scale_multiplier"),
            extents=(time, height, width),
        )

    def num_heads(self, geometry: LtxVideoGeometry) -> int:
        return geometry.num_heads

    def key_map(self, geometry: LtxVideoGeometry | None) -> KeyMap:
        return KeyMap(modules=_TOP, stacks={"transformer_blocks": _BLOCKS})

    def network(self, geometry: LtxVideoGeometry) -> Any:
        from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel

        network: Any = LTXVideoTransformer3DModel(
            in_channels=geometry.channels,
            out_channels=geometry.channels,
            num_attention_heads=geometry.num_heads,
            attention_head_dim=geometry.hidden // geometry.num_heads,
            cross_attention_dim=geometry.hidden,
            num_layers=geometry.depth,
            caption_channels=geometry.text_dim,
        )
        rope = network.rope
        rope.base_num_frames, rope.base_height, rope.base_width = geometry.extents
        return network

    def inputs(self, geometry: LtxVideoGeometry) -> Inputs:
        return Inputs(
            label=self.label,
            dims=5,
            channels=geometry.channels,
            tensors=(
                Input(name="context", dims=3, width=geometry.text_dim, required=True, advice=_ENCODER),
                Input(name="attention_mask", dims=2, advice=_ENCODER),
                Input(name="denoise_mask", dims=5, advice="Give the latent a noise mask of its own size"),
                Input(name="keyframe_idxs", dims=4, width=2, advice=_GUIDES),
            ),
            numbers=(Number(name="frame_rate", called="the frame rate"),),
            numbers_per_position=True,
        )

    def check(self, geometry: LtxVideoGeometry, request: CallSpec) -> None:
        given = request.conditioning
        mask, context = given.get("attention_mask"), given["context"]
        if mask is not None and mask[1] != context[1]:
            raise BadRequest(
                f"Connect the text conditioning as its encoder made it: got {mask[1]} values of attention_mask for {context[1]} tokens."
            )
        guides = given.get("keyframe_idxs")
        if guides is None:
            return
        _, _, *sizes = request.x_shape
        denoise = given.get("denoise_mask", ())
        per_token = len(request.timestep_shape) == 3
        if guides[1] != 3 or guides[2] > math.prod(sizes) or not per_token or list(denoise[2:]) != sizes:
            raise BadRequest(
                f"{_GUIDES}, with its noise mask: guides need keyframe_idxs of [batch, 3, at most {math.prod(sizes)}, 2], denoise_mask of "
                f"[batch, channels, {', '.join(map(str, sizes))}] and a timestep per token, got {list(guides)}, {list(denoise)} "
                f"and timesteps of {list(request.timestep_shape)}."
            )

    def check_values(self, conditioning: Mapping[str, Tensor]) -> None:
        kept = _kept(conditioning)
        if kept is not None and not kept.any():
            raise BadRequest(f"{_GUIDES}: its noise mask leaves out every token.")

    def is_joint_attention(self, name: str) -> bool:
        return name.endswith(".attn1")

    def arrange(self, network: Any, geometry: LtxVideoGeometry, call: ModelCall) -> Arranged:
        batch, channels, *sizes = call.x.shape
        tokens_BSC = call.x.flatten(2).transpose(1, 2)
        timestep = call.timestep * geometry.timestep_scale
        if timestep.ndim == 3:
            timestep = timestep[..., 0]
        positions_B3S = grid_positions(sizes, geometry.causal, call.x.device)
        kept = _kept(call.conditioning)
        if kept is not None:
            tokens_BSC, timestep = tokens_BSC[:, kept], timestep[:, kept]
            positions_B3S = _with_guides(positions_B3S, call.conditioning["keyframe_idxs"], kept)
        frame_rate = call.options.get("frame_rate", DEFAULT_FRAME_RATE)
        coordinates = positions_B3S.float()
        coordinates[:, 0] *= 1.0 / float(frame_rate)

        def finish(out_BSC: Tensor) -> Tensor:
            if kept is not None:
                whole = out_BSC.new_zeros(batch, len(kept), channels)
                whole[:, kept] = out_BSC
                out_BSC = whole
            return out_BSC.transpose(1, 2).reshape(batch, channels, *sizes)

        return Arranged(
            arguments={
                "hidden_states": tokens_BSC,
                "encoder_hidden_states": call.conditioning["context"],
                "timestep": timestep,
                "encoder_attention_mask": _bias(call.conditioning.get("attention_mask"), call.x.dtype),
                "video_coords": coordinates,
            },
            streams={_VIDEO: tokens_BSC.shape[1]},
            finish=finish,
        )


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What the file's metadata says of the transformer; empty where it says nothing.

    Raises:
        BadCheckpoint: it cannot be read, or is of a network that LTX-Video's is not.
    """
    try:
        whole = json.loads(checkpoint.metadata.get("config", "{}"))
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint("Download the checkpoint again: the config in its metadata is damaged.") from error
    config = whole.get("transformer", {}) if type(whole) is dict else None
    if type(config) is not dict:
        raise BadCheckpoint("Download the checkpoint again: the config in its metadata is damaged.")
    if other := [name for name, value in _FIXED.items() if config.get(name, value) != value]:
        raise BadCheckpoint(
            f"Choose an LTX-Video 0.9 checkpoint: the metadata of this one sets {', '.join(other)} as later models do."
        )
    return config


def _positive(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e9:
        raise _damaged(name, value)
    return float(value)


def _damaged(name: str, value: Any) -> BadCheckpoint:
    return BadCheckpoint(
        f"Choose another checkpoint: its metadata gives {str(value)[:40]} for {name}, which LTX-Video cannot run with."
    )


def grid_positions(sizes: list[int], causal: bool, device: torch.device) -> Tensor:
    """Frame, row and column of the video at which each token begins, int64 ``[1, 3, S]``.

    Causal: latent frame 0 is frame 0 alone, latent frame f begins at frame ``8 f - 7``.
    """
    axes = [torch.arange(size, device=device) * scale for size, scale in zip(sizes, SCALES, strict=True)]
    if causal:
        axes[0] = (axes[0] + 1 - SCALES[0]).clamp(min=0)
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)[None]


def _kept(conditioning: Mapping[str, Tensor]) -> Tensor | None:
    """With guides: which tokens take part, bool ``[S]``; None: all of them.

    A guide on a coarser grid fills only some places of its frames, and the mask is negative at the others. ComfyUI asks the batch's first row.
    """
    if "keyframe_idxs" not in conditioning:
        return None
    return ~(conditioning["denoise_mask"][0] < 0).any(dim=0).flatten()


def _with_guides(positions_13S: Tensor, keyframes_B3K2: Tensor, kept: Tensor) -> Tensor:
    """Positions of the tokens that take part, int64 ``[B, 3, tokens]``: the last K of all tokens are the guides', and stand where ``keyframes`` say.

    (They give begin and end on each axis; the begin counts.)
    """
    guides = keyframes_B3K2[:, :, kept[-keyframes_B3K2.shape[2] :], 0]
    own = positions_13S[:, :, kept]
    own = own[:, :, : own.shape[2] - guides.shape[2]].expand(len(guides), -1, -1)
    return torch.cat((own, guides.to(own.dtype)), dim=2)


def _bias(mask_BT: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What cross-attention adds to its logits, ``[B, 1, T]``. A mask of floats is such a bias already, as in ComfyUI.

    diffusers would add -10,000: a prompt that is masked out entirely gives another result then.
    """
    if mask_BT is None:
        return None
    if not mask_BT.is_floating_point():
        mask_BT = (mask_BT - 1).to(dtype) * torch.finfo(dtype).max
    return mask_BT[:, None]
