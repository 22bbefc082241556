"""Wan 2.1 and 2.2: text to video, image to video with and without CLIP vision, and the 5B model with a timestep per frame.

The high-noise and the low-noise half of a Wan 2.2 pair are two checkpoints of this family; both stay resident.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from ...errors import BadCheckpoint
from ...parallel.hooks import Gather, Split, SplitOutput
from ..checkpoint import Checkpoint
from ..family import Arranged, Family, ModelCall
from ..inputs import Input, Inputs
from ..keys import KeyMap, Stack, count_blocks, shape_of
from ..patches import pad_to_patches
from ..rotary import grid_angles

HEAD_DIM: Final = 128
PATCH: Final = (1, 2, 2)
_FREQUENCIES: Final = 256
_THETA: Final = 10_000.0
_VIDEO: Final = "video"

_TOP: Final = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
_BLOCKS: Final = Stack(
    "blocks",
    {
        "attn1.to_q": "self_attn.q",
        "attn1.to_k": "self_attn.k",
        "attn1.to_v": "self_attn.v",
        "attn1.to_out.0": "self_attn.o",
        "attn1.norm_q": "self_attn.norm_q",
        "attn1.norm_k": "self_attn.norm_k",
        "attn2.to_q": "cross_attn.q",
        "attn2.to_k": "cross_attn.k",
        "attn2.to_v": "cross_attn.v",
        "attn2.to_out.0": "cross_attn.o",
        "attn2.norm_q": "cross_attn.norm_q",
        "attn2.norm_k": "cross_attn.norm_k",
        "attn2.add_k_proj": "cross_attn.k_img",
        "attn2.add_v_proj": "cross_attn.v_img",
        "attn2.norm_added_k": "cross_attn.norm_k_img",
        "norm2": "norm3",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
        "scale_shift_table": "modulation",
    },
)
_ENCODER: Final = "Use the text encoder that belongs to Wan (UMT5-XXL in published models)"
_VISION: Final = "Use the CLIP vision model that belongs to Wan (CLIP ViT-H in published models)"


@dataclass(frozen=True, slots=True, kw_only=True)
class WanGeometry:
    """Everything that Wan checkpoints differ in."""

    hidden: int
    depth: int
    ffn_dim: int
    in_channels: int
    """Latent channels with concatenated conditions: 16, 36 (image to video), 48 (5B)."""
    out_channels: int
    text_dim: int
    image_dim: int | None
    """Width of CLIP vision features; None where the network takes none."""
    image_positions: int | None
    """Image tokens that have a position of their own (first and last frame); None where they have none."""


class Wan(Family[WanGeometry]):
    """Wan 2.1 and 2.2."""

    name = "wan"
    label = "Wan"
    original_marks = ("head.modulation", "blocks.0.self_attn.q.weight")
    diffusers_marks = ("condition_embedder.time_proj.weight", "scale_shift_table", "blocks.0.attn1.to_q.weight")
    # VACE, Camera, S2V, HuMo, Animate, SCAIL, WanDancer, Fun Control.
    relatives = (
        "vace_", "control_adapter.", "casual_audio_encoder.", "audio_proj.", "face_adapter.", "patch_embedding_mask.",
        "patch_embedding_pose.", "patch_embedding_global.", "ref_conv.", "motion_encoder.",
    )  # fmt: skip
    splits = (
        Split("timestep", _VIDEO, 1, only_with_dims=2),
        Split("hidden_states", _VIDEO, 1, module="blocks.0"),
        SplitOutput("rope", 0, _VIDEO, 1),
        SplitOutput("rope", 1, _VIDEO, 1),
    )
    gather = Gather("proj_out", _VIDEO)

    def geometry(self, checkpoint: Checkpoint, named: Callable[[str], str]) -> WanGeometry:
        hidden, in_channels, *patch = shape_of(checkpoint, "patch_embedding.weight", dims=5)
        outputs = shape_of(checkpoint, named("proj_out.weight"))[0]
        if hidden % HEAD_DIM or tuple(patch) != PATCH or outputs % 4 or 0 in (hidden, in_channels, outputs):
            raise BadCheckpoint(
                f"Choose another checkpoint: a Wan has a width of whole {HEAD_DIM}-wide heads and patches of {PATCH}, "
                f"this one is {hidden} wide with patches of {tuple(patch)} and {outputs} outputs per token."
            )
        image = named("condition_embedder.image_embedder.ff.net.0.proj.weight")
        positions = named("condition_embedder.image_embedder.pos_embed")
        return WanGeometry(
            hidden=hidden,
            depth=count_blocks(checkpoint, "blocks"),
            ffn_dim=shape_of(checkpoint, named("blocks.0.ffn.net.0.proj.weight"))[0],
            in_channels=in_channels,
            out_channels=outputs // 4,
            text_dim=shape_of(checkpoint, named("condition_embedder.text_embedder.linear_1.weight"))[1],
            image_dim=shape_of(checkpoint, image)[1] if image in checkpoint else None,
            image_positions=shape_of(checkpoint, positions, dims=3)[1] if positions in checkpoint else None,
        )

    def num_heads(self, geometry: WanGeometry) -> int:
        return geometry.hidden // HEAD_DIM

    def key_map(self, geometry: WanGeometry | None) -> KeyMap:
        return KeyMap(modules=_TOP, stacks={"blocks": _BLOCKS})

    def network(self, geometry: WanGeometry) -> Any:
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

        network: Any = WanTransformer3DModel(
            patch_size=PATCH,
            num_attention_heads=geometry.hidden // HEAD_DIM,
            attention_head_dim=HEAD_DIM,
            in_channels=geometry.in_channels,
            out_channels=geometry.out_channels,
            text_dim=geometry.text_dim,
            freq_dim=_FREQUENCIES,
            ffn_dim=geometry.ffn_dim,
            num_layers=geometry.depth,
            image_dim=geometry.image_dim,
            added_kv_proj_dim=geometry.hidden if geometry.image_dim else None,
            pos_embed_seq_len=geometry.image_positions,
        )
        network.rope = Positions()
        embedder = network.condition_embedder
        embedder.image_embedder = ImageEmbedder(embedder.image_embedder) if geometry.image_dim else None
        network.image_tokens = ImageTokens()
        for block in network.blocks:
            block.attn2.set_processor(CrossAttention(network.image_tokens))
        return network

    def inputs(self, geometry: WanGeometry) -> Inputs:
        return Inputs(
            label=self.label,
            dims=5,
            channels=geometry.in_channels,
            answer_channels=geometry.out_channels,
            tensors=(
                Input(name="context", dims=3, width=geometry.text_dim, required=True, advice=_ENCODER),
                Input(name="clip_features", dims=3, width=geometry.image_dim, advice=_VISION),
            ),
            numbers_per_frame=True,
        )

    def is_joint_attention(self, name: str) -> bool:
        return name.endswith(".attn1")

    def arrange(self, network: Any, geometry: WanGeometry, call: ModelCall) -> Arranged:
        frames, height, width = call.x.shape[2:]
        x = pad_to_patches(call.x, PATCH[1:])
        tokens_per_frame = (x.shape[3] // PATCH[1]) * (x.shape[4] // PATCH[2])
        timestep = call.timestep
        if timestep.ndim == 2:
            timestep = timestep.repeat_interleave(tokens_per_frame, dim=1)
        features = call.conditioning.get("clip_features") if geometry.image_dim else None
        network.image_tokens.count = None if features is None else _image_tokens(features, geometry)
        return Arranged(
            arguments={
                "hidden_states": x,
                "timestep": timestep,
                "encoder_hidden_states": call.conditioning["context"],
                "encoder_hidden_states_image": features,
            },
            streams={_VIDEO: frames * tokens_per_frame},
            finish=lambda out: out[:, :, :, :height, :width],
        )


def _image_tokens(features: Tensor, geometry: WanGeometry) -> int:
    return min(features.shape[1], geometry.image_positions or features.shape[1])


class Positions(nn.Module):
    """Rotary angles of a video's tokens: diffusers' module keeps tables that no file fills, and lets them end at 1,024."""

    def forward(self, x_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 ``[1, tokens, 1, head_dim]``, each value twice."""
        sizes = [size // patch for size, patch in zip(x_BCFHW.shape[2:], PATCH, strict=True)]
        side = 2 * (HEAD_DIM // 6)
        angles = grid_angles(sizes, (HEAD_DIM - 2 * side, side, side), _THETA, x_BCFHW.device)
        angles = angles.repeat_interleave(2, dim=-1)[None, :, None]
        return angles.cos().float(), angles.sin().float()


class ImageEmbedder(nn.Module):
    """CLIP vision features as tokens. Positions, where the network has them, belong to the first tokens, as in ComfyUI."""

    norm1: nn.Module
    ff: nn.Module
    norm2: nn.Module
    pos_embed: nn.Parameter | None

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.norm1, self.ff, self.norm2 = embedder.norm1, embedder.ff, embedder.norm2
        self.pos_embed = embedder.pos_embed

    def forward(self, features_BTC: Tensor) -> Tensor:
        """``[B, tokens, hidden]``."""
        if self.pos_embed is not None:
            features_BTC = features_BTC[:, : self.pos_embed.shape[1]]
            features_BTC = features_BTC + self.pos_embed[:, : features_BTC.shape[1]]
        out: Tensor = self.norm2(self.ff(self.norm1(features_BTC)))
        return out


class ImageTokens:
    """How many of a call's context tokens are of an image. Set before every call; None: the call has no image."""

    count: int | None = None


class CrossAttention:
    """Attention to text, and to an image where the network knows images. Local: text is whole on every rank.

    diffusers takes the last 512 tokens for text; ComfyUI counts the image's tokens, and lets a network that knows images attend twice to
    the text when a call has none.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, image_tokens: ImageTokens) -> None:
        self._image_tokens = image_tokens

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        count = self._image_tokens.count
        text = encoder_hidden_states[:, count:]
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        out = _attend(query, attn.norm_k(attn.to_k(text)), attn.to_v(text))
        if attn.add_k_proj is not None:
            image = encoder_hidden_states[:, :count]
            out = out + _attend(query, attn.norm_added_k(attn.add_k_proj(image)), attn.add_v_proj(image))
        projected: Tensor = attn.to_out[0](out)
        return projected


def _attend(query_BSHD: Tensor, key_BTC: Tensor, value_BTC: Tensor) -> Tensor:
    heads = query_BSHD.shape[2]
    query, key, value = (
        tensor.transpose(1, 2)
        for tensor in (query_BSHD, key_BTC.unflatten(2, (heads, -1)), value_BTC.unflatten(2, (heads, -1)))
    )
    return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
