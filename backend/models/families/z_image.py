"""Z-Image, base and turbo: text to image, one stream of image and caption tokens after a few blocks that refine each alone.

Z-Image Omni (reference pictures, SigLIP), Z-Image in pixel space, its control networks and Lumina 2 are other families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...errors import BadCheckpoint
from ...parallel.hooks import Gather, Split
from ..checkpoint import Checkpoint
from ..family import Arranged, Family, ModelCall
from ..inputs import Choice, Input, Inputs
from ..keys import KeyMap, Names, Rows, Stack, count_blocks, shape_of
from ..patches import PATCH, pad_to_patches, patches
from ..rotary import frequencies

HEAD_DIM: Final = 128
ROTARY_AXES: Final = (32, 48, 48)
MULTIPLE: Final = 32
"""Both streams are filled up with learned tokens to whole multiples of this; those tokens are attended to like all others."""
_THETA: Final = 256.0
_TIME_SCALE: Final = 1000.0
_NORM_EPS: Final = 1e-5
_QK_NORM_EPS: Final = torch.finfo(torch.float32).eps
"""ComfyUI gives these norms none, and so torch's default for float32, in every dtype; diffusers has 1e-5."""
_VECTOR: Final = 256
_IMAGE: Final = "image"
_TEXT: Final = "text"
_PATCH_KEY: Final = "2-1"
"""What diffusers calls 2x2 patches of one frame."""

_TOP: Final = {
    f"all_x_embedder.{_PATCH_KEY}": "x_embedder",
    "cap_embedder.0": "cap_embedder.0",
    "cap_embedder.1": "cap_embedder.1",
    "t_embedder.mlp.0": "t_embedder.mlp.0",
    "t_embedder.mlp.2": "t_embedder.mlp.2",
    "x_pad_token": "x_pad_token",
    "cap_pad_token": "cap_pad_token",
    f"all_final_layer.{_PATCH_KEY}.linear": "final_layer.linear",
    f"all_final_layer.{_PATCH_KEY}.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}
_BLOCK: Final[Names] = {
    "attention.to_q": Rows("attention.qkv", 0, 1),
    "attention.to_k": Rows("attention.qkv", 1, 2),
    "attention.to_v": Rows("attention.qkv", 2, 3),
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    "feed_forward.w1": "feed_forward.w1",
    "feed_forward.w2": "feed_forward.w2",
    "feed_forward.w3": "feed_forward.w3",
    "attention_norm1": "attention_norm1",
    "attention_norm2": "attention_norm2",
    "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
    "adaLN_modulation.0": "adaLN_modulation.0",
}
_STACKS: Final = {name: Stack(name, _BLOCK) for name in ("noise_refiner", "context_refiner", "layers")}
_BLOCK_NORMS: Final = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
_ENCODER: Final = "Use the text encoder that belongs to Z-Image (Qwen3-4B in published models)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZImageGeometry:
    """Everything that Z-Image checkpoints differ in."""

    hidden: int
    depth: int
    """Blocks that see image and caption together."""
    depth_refiner: int
    """Blocks that see one of the two, for each of them."""
    ffn_dim: int
    time_dim: int
    """Width inside the timestep's embedder."""
    in_channels: int
    context_dim: int
    """Width of the text encoder's tokens."""


class ZImage(Family[ZImageGeometry]):
    """Z-Image."""

    name = "z_image"
    label = "Z-Image"
    original_marks = (
        "noise_refiner.0.attention.qkv.weight", "layers.0.adaLN_modulation.0.weight", "cap_pad_token", "x_pad_token",
    )  # fmt: skip
    diffusers_marks = (
        f"all_x_embedder.{_PATCH_KEY}.weight", "noise_refiner.0.attention.to_q.weight", "layers.0.adaLN_modulation.0.weight",
        "cap_pad_token", "x_pad_token",
    )  # fmt: skip
    # Omni; pixel space; NewBie; control networks; Lumina 2.
    relatives = (
        "siglip_", "dec_net.", "__x0__", "clip_text_pooled_proj.", "time_text_embed.", "control_", "layers.0.adaLN_modulation.1.",
    )  # fmt: skip
    unread = ("norm_final.weight",)
    splits = (
        Split("image", _IMAGE, 1, module="join"),
        Split("text", _TEXT, 1, module="join"),
        Split("image_rotary", _IMAGE, 1, module="join"),
        Split("text_rotary", _TEXT, 1, module="join"),
    )
    gather = Gather(f"all_final_layer.{_PATCH_KEY}", _IMAGE)

    def geometry(self, checkpoint: Checkpoint, named: Callable[[str], str]) -> ZImageGeometry:
        hidden, in_features = shape_of(checkpoint, named(f"all_x_embedder.{_PATCH_KEY}.weight"))
        if hidden % HEAD_DIM or in_features % PATCH**2 or 0 in (hidden, in_features):
            raise BadCheckpoint(
                f"Choose another checkpoint: a Z-Image has a width of whole {HEAD_DIM}-wide heads and 2x2 patches, "
                f"this one is {hidden} wide with {in_features} inputs per token."
            )
        return ZImageGeometry(
            hidden=hidden,
            depth=count_blocks(checkpoint, "layers"),
            depth_refiner=count_blocks(checkpoint, "noise_refiner"),
            ffn_dim=shape_of(checkpoint, named("layers.0.feed_forward.w1.weight"))[0],
            time_dim=shape_of(checkpoint, named("t_embedder.mlp.0.weight"))[0],
            in_channels=in_features // PATCH**2,
            context_dim=shape_of(checkpoint, named("cap_embedder.1.weight"))[1],
        )

    def num_heads(self, geometry: ZImageGeometry) -> int:
        return geometry.hidden // HEAD_DIM

    def key_map(self, geometry: ZImageGeometry | None) -> KeyMap:
        return KeyMap(modules=_TOP, stacks=_STACKS, unit=geometry.hidden if geometry else 0)

    def network(self, geometry: ZImageGeometry) -> Any:
        from diffusers.models.transformers.transformer_z_image import TimestepEmbedder, ZImageTransformer2DModel

        network: Any = ZImageTransformer2DModel(
            in_channels=geometry.in_channels,
            dim=geometry.hidden,
            n_layers=geometry.depth,
            n_refiner_layers=geometry.depth_refiner,
            n_heads=geometry.hidden // HEAD_DIM,
            n_kv_heads=geometry.hidden // HEAD_DIM,
            cap_feat_dim=geometry.context_dim,
            axes_dims=list(ROTARY_AXES),
        )
        network.t_embedder = TimestepEmbedder(_VECTOR, mid_size=geometry.time_dim)
        network.cap_embedder[0] = nn.RMSNorm(geometry.context_dim, eps=_NORM_EPS)
        for block in (*network.noise_refiner, *network.context_refiner, *network.layers):
            _as_in_comfyui(block, geometry)
        return Transformer(network)

    def inputs(self, geometry: ZImageGeometry) -> Inputs:
        return Inputs(
            label=self.label,
            dims=4,
            channels=geometry.in_channels,
            tensors=(
                Input(name="context", dims=3, width=geometry.context_dim, required=True, advice=_ENCODER),
                # ComfyUI's network takes the mask and the number of tokens, and reads neither: every text token counts.
                Input(name="attention_mask", dims=2, advice=_ENCODER),
            ),
            choices=(Choice(name="num_tokens"),),
        )

    def is_joint_attention(self, name: str) -> bool:
        return name.startswith("layers.") and name.endswith(".attention")

    def arrange(self, network: Any, geometry: ZImageGeometry, call: ModelCall) -> Arranged:
        context = call.conditioning["context"]
        height, width = call.x.shape[2:]
        grid = patches(height), patches(width)
        text_tokens = _filled_up(context.shape[1])
        image_tokens = _filled_up(grid[0] * grid[1])
        return Arranged(
            arguments={
                "image_patches": pack(call.x),
                "timestep": call.timestep,
                "context": context,
                "image_rotary": rotary(image_positions(grid, text_tokens, call.x.device)),
                "text_rotary": rotary(text_positions(text_tokens, call.x.device)),
            },
            streams={_IMAGE: image_tokens, _TEXT: text_tokens},
            finish=lambda out: -unpack(out, grid)[:, :, :height, :width],
        )


def _filled_up(tokens: int) -> int:
    return -(-tokens // MULTIPLE) * MULTIPLE


def pack(x_BCHW: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> patches ``[B, h w, 4C]``: the patch's row outermost, then its column, then the channel; odd sizes wrap around."""
    blocks = pad_to_patches(x_BCHW).unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpack(tokens_BSP: Tensor, grid: tuple[int, int]) -> Tensor:
    """The first ``h w`` of the tokens ``[B, S, 4C]`` -> ``[B, C, 2h, 2w]``: the inverse of :func:`pack`."""
    blocks = tokens_BSP[:, : grid[0] * grid[1]].unflatten(2, (PATCH, PATCH, -1)).unflatten(1, grid)
    return blocks.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def text_positions(tokens: int, device: torch.device) -> Tensor:
    """int64 ``[tokens, 3]``: the caption counts from 1 on the first axis, its filling included."""
    positions = torch.zeros(tokens, 3, dtype=torch.int64, device=device)
    positions[:, 0] = torch.arange(1, tokens + 1, device=device)
    return positions


def image_positions(grid: tuple[int, int], text_tokens: int, device: torch.device) -> Tensor:
    """int64 ``[tokens, 3]``: the picture stands behind the caption on the first axis; its filling is at the origin."""
    real = grid[0] * grid[1]
    positions = torch.zeros(_filled_up(real), 3, dtype=torch.int64, device=device)
    positions[:real, 0] = text_tokens + 1
    positions[:real, 1] = torch.arange(grid[0], device=device).repeat_interleave(grid[1])
    positions[:real, 2] = torch.arange(grid[1], device=device).repeat(grid[0])
    return positions


def rotary(positions_S3: Tensor) -> Tensor:
    """Rotations of the head's pairs, complex64 ``[1, S, head_dim / 2]``. diffusers has tables, which end, of float32 angles."""
    parts = [
        positions_S3[:, axis, None] * frequencies(dim, _THETA, positions_S3.device)
        for axis, dim in enumerate(ROTARY_AXES)
    ]
    angles = torch.cat(parts, dim=-1)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[None]


class Join(nn.Module):
    """Image and caption become one sequence. A module, because the streams are cut where it is entered."""

    def forward(
        self, image: Tensor, text: Tensor, image_rotary: Tensor, text_rotary: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Tokens ``[B, S + T, hidden]``, rotations ``[1, S + T, head_dim / 2]``, and how many of the tokens are the image's."""
        return torch.cat((image, text), 1), torch.cat((image_rotary, text_rotary), 1), image.shape[1]


class Transformer(nn.Module):
    """The modules of diffusers' network under their own names, for whole batches.

    diffusers' own ``forward`` takes lists, one entry per picture, and masks what it fills up; ComfyUI's network knows neither.
    The refiners run whole on every rank: they are few, and each sees one stream only.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        for name, child in network.named_children():
            self.add_module(name, child)
        self.x_pad_token = network.x_pad_token
        self.cap_pad_token = network.cap_pad_token
        self.join = Join()

    def forward(
        self,
        image_patches: Tensor,
        timestep: Tensor,
        context: Tensor,
        image_rotary: Tensor,
        text_rotary: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Patches ``[B, h w, 4C]``, float32 timestep ``[B]``, context ``[B, tokens, context_dim]`` -> ``[B, S, 4C]`` with its filling."""
        modules: Any = self
        vector = modules.t_embedder((1 - timestep) * _TIME_SCALE)
        text = _fill_up(modules.cap_embedder(context), modules.cap_pad_token)
        for block in modules.context_refiner:
            text = block(text, None, text_rotary)
        image = _fill_up(modules.all_x_embedder[_PATCH_KEY](image_patches), modules.x_pad_token)
        for block in modules.noise_refiner:
            image = block(image, None, image_rotary, vector)
        tokens, rotations, image_tokens = modules.join(image, text, image_rotary, text_rotary)
        for block in modules.layers:
            tokens = block(tokens, None, rotations, vector)
        return (modules.all_final_layer[_PATCH_KEY](tokens[:, :image_tokens], c=vector),)


def _fill_up(tokens_BSC: Tensor, token_1C: Tensor) -> Tensor:
    batch, tokens, width = tokens_BSC.shape
    return torch.cat((tokens_BSC, token_1C.expand(batch, _filled_up(tokens) - tokens, width)), dim=1)


def _as_in_comfyui(block: Any, geometry: ZImageGeometry) -> None:
    """Norms that round once, an epsilon of its own for queries and keys, and finite values in float16."""
    for name in _BLOCK_NORMS:
        setattr(block, name, nn.RMSNorm(geometry.hidden, eps=_NORM_EPS))
    block.attention.norm_q = nn.RMSNorm(HEAD_DIM, eps=_QK_NORM_EPS)
    block.attention.norm_k = nn.RMSNorm(HEAD_DIM, eps=_QK_NORM_EPS)
    block.attention.to_out[1] = Finite()  # in the place of a dropout
    block.feed_forward = FeedForward(geometry.hidden, geometry.ffn_dim)


class Finite(nn.Module):
    """Published checkpoints overflow in float16, where ComfyUI puts the largest finite value for infinity and 0 for NaN."""

    def forward(self, x: Tensor) -> Tensor:
        """Like ``x``."""
        return torch.nan_to_num(x) if x.dtype == torch.float16 else x


class FeedForward(nn.Module):
    """``w2(silu(w1 x) * w3 x)``, of the width that the file has, finite in float16."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)
        self.w3 = nn.Linear(hidden, inner, bias=False)
        self.finite = Finite()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` -> ``[B, S, hidden]``."""
        gated = self.finite(nn.functional.silu(self.w1(x)) * self.w3(x))
        out: Tensor = self.finite(self.w2(gated))
        return out
