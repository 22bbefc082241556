"""HunyuanVideo: text to video, and image to video by concatenated channels, by a guiding first frame and by a reference latent.

The *guiding frame* is the video's first one where it is given: its tokens are modulated by a time of their own. ComfyUI counts a frame's
tokens from the start of whatever sequence a module works on, and that is what happens here: in double blocks reference tokens come before the
video's, in single blocks all of the text does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...errors import BadCheckpoint, BadRequest, UnsupportedInput
from ...parallel.hooks import Gather, Split
from ..checkpoint import Checkpoint
from ..embeddings import sinusoid
from ..family import Arranged, Family, ModelCall
from ..inputs import Input, Inputs
from ..keys import KeyMap, Names, Rows, Stack, Swapped, count_blocks, shape_of
from ..modulation import Modulation, of_tokens
from ..patches import pad_to_patches, patches, unpack
from ..rotary import angles
from .flux import Flux

HEAD_DIM: Final = 128
PATCH: Final = (1, 2, 2)
_ROTARY_AXES: Final = (16, 56, 56)
_THETA: Final = 256.0
_VIDEO: Final = "video"
_TEXT: Final = "text"

_EMBEDDERS: Final = {
    "context_embedder.time_text_embed.timestep_embedder": "txt_in.t_embedder",
    "context_embedder.time_text_embed.text_embedder": "txt_in.c_embedder",
    "time_text_embed.timestep_embedder": "time_in",
    "time_text_embed.guidance_embedder": "guidance_in",
    "time_text_embed.text_embedder": "vector_in",
}
_TOP: Final[Names] = {
    **{f"{ours}.linear_1": f"{theirs}.in_layer" for ours, theirs in _EMBEDDERS.items()},
    **{f"{ours}.linear_2": f"{theirs}.out_layer" for ours, theirs in _EMBEDDERS.items()},
    "x_embedder.proj": "img_in.proj",
    "context_embedder.proj_in": "txt_in.input_embedder",
    "norm_out.linear": Swapped("final_layer.adaLN_modulation.1"),
    "proj_out": "final_layer.linear",
}
_REFINER: Final = Stack(
    "txt_in.individual_token_refiner.blocks",
    {
        "norm1": "norm1",
        "norm2": "norm2",
        "norm_out.linear": "adaLN_modulation.1",
        "attn.to_q": Rows("self_attn.qkv", 0, 1),
        "attn.to_k": Rows("self_attn.qkv", 1, 2),
        "attn.to_v": Rows("self_attn.qkv", 2, 3),
        "attn.to_out.0": "self_attn.proj",
        "ff.net.0.proj": "mlp.0",
        "ff.net.2": "mlp.2",
    },
)
# ComfyUI's modules -> Tencent's. Of two ends that fit, the first is the right one.
_ENDS: Final = {
    "_attn.norm.query_norm": "_attn_q_norm",
    "_attn.norm.key_norm": "_attn_k_norm",
    ".norm.query_norm": ".q_norm",
    ".norm.key_norm": ".k_norm",
    "_attn.qkv": "_attn_qkv",
    "_attn.proj": "_attn_proj",
    ".lin": ".linear",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
    "c_embedder.in_layer": "c_embedder.linear_1",
    "c_embedder.out_layer": "c_embedder.linear_2",
    **{f"{name}.in_layer": f"{name}.mlp.0" for name in ("t_embedder", "time_in", "guidance_in")},
    **{f"{name}.out_layer": f"{name}.mlp.2" for name in ("t_embedder", "time_in", "guidance_in")},
}
_ENCODER: Final = "Use the text encoders that belong to HunyuanVideo (LLaVA-LLaMA-3 with CLIP-L in published models)"
_VAE: Final = "Encode the reference image with the VAE of HunyuanVideo, and use it with a checkpoint of text to video"


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanVideoGeometry:
    """Everything that HunyuanVideo checkpoints differ in."""

    hidden: int
    depth: int
    """Double-stream blocks."""
    depth_single: int
    in_channels: int
    """Latent channels with concatenated conditions: 16, 33 (image to video), 32 (SkyReels)."""
    out_channels: int
    context_dim: int
    """Width of the text encoder's tokens."""
    pooled_dim: int
    guidance: bool
    """Whether guidance is an input."""


class HunyuanVideo(Family[HunyuanVideoGeometry]):
    """HunyuanVideo 1.0 and what shares its network (SkyReels V1)."""

    name = "hunyuan_video"
    label = "HunyuanVideo"
    original_marks = ("txt_in.input_embedder.weight", "img_in.proj.weight", "vector_in.in_layer.weight")
    diffusers_marks = ("context_embedder.proj_in.weight", "time_text_embed.text_embedder.linear_1.weight")
    # HunyuanVideo 1.5 and HunyuanImage in both namings, GameCraft, FramePack.
    relatives = (
        "byt5_in.", "vision_in.", "cond_type_embedding.", "time_r_in.", "context_embedder_2.", "image_embedder.", "cond_type_embed.",
        "camera_net.", "clean_x_embedder.", "image_projection.",
    )  # fmt: skip
    spellings = {  # noqa: RUF012 - read only
        **{f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in _ENDS.items() for leaf in ("weight", "bias")},
        "_norm.weight": "_norm.scale",
    }
    splits = (
        *(Split(name, _VIDEO, 0) for name in ("cosines", "sines", "in_double", "in_single", "at_the_end")),
        Split("text_in_single", _TEXT, 0),
        Split("video", _VIDEO, 1, module="transformer_blocks.0"),
        Split("text", _TEXT, 1, module="transformer_blocks.0"),
    )
    gather = Gather("proj_out", _VIDEO)

    def geometry(self, checkpoint: Checkpoint, named: Callable[[str], str]) -> HunyuanVideoGeometry:
        hidden, in_channels, *patch = shape_of(checkpoint, named("x_embedder.proj.weight"), dims=5)
        outputs = shape_of(checkpoint, named("proj_out.weight"))[0]
        if hidden % HEAD_DIM or tuple(patch) != PATCH or outputs % 4 or 0 in (hidden, in_channels, outputs):
            raise BadCheckpoint(
                f"Choose another checkpoint: a HunyuanVideo has a width of whole {HEAD_DIM}-wide heads and patches of {PATCH}, "
                f"this one is {hidden} wide with patches of {tuple(patch)} and {outputs} outputs per token."
            )
        original = self.is_original(checkpoint)
        return HunyuanVideoGeometry(
            hidden=hidden,
            depth=count_blocks(checkpoint, "double_blocks" if original else "transformer_blocks"),
            depth_single=count_blocks(checkpoint, "single_blocks" if original else "single_transformer_blocks"),
            in_channels=in_channels,
            out_channels=outputs // 4,
            context_dim=shape_of(checkpoint, named("context_embedder.proj_in.weight"))[1],
            pooled_dim=shape_of(checkpoint, named("time_text_embed.text_embedder.linear_1.weight"))[1],
            guidance=named("time_text_embed.guidance_embedder.linear_1.weight") in checkpoint,
        )

    def num_heads(self, geometry: HunyuanVideoGeometry) -> int:
        return geometry.hidden // HEAD_DIM

    def key_map(self, geometry: HunyuanVideoGeometry | None) -> KeyMap:
        # ComfyUI runs FLUX.1's blocks here: they have the same names.
        stacks = {**Flux().key_map(None).stacks, "context_embedder.token_refiner.refiner_blocks": _REFINER}
        return KeyMap(modules=_TOP, stacks=stacks, unit=geometry.hidden if geometry else 0)

    def network(self, geometry: HunyuanVideoGeometry) -> Any:
        from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

        transformer = HunyuanVideoTransformer3DModel(
            in_channels=geometry.in_channels,
            out_channels=geometry.out_channels,
            num_attention_heads=geometry.hidden // HEAD_DIM,
            attention_head_dim=HEAD_DIM,
            num_layers=geometry.depth,
            num_single_layers=geometry.depth_single,
            guidance_embeds=geometry.guidance,
            text_embed_dim=geometry.context_dim,
            pooled_projection_dim=geometry.pooled_dim,
        )
        return Network(transformer)

    def inputs(self, geometry: HunyuanVideoGeometry) -> Inputs:
        return Inputs(
            label=self.label,
            dims=5,
            channels=geometry.in_channels,
            answer_channels=geometry.out_channels,
            sides_of=PATCH[1],
            tensors=(
                Input(name="context", dims=3, width=geometry.context_dim, required=True, advice=_ENCODER),
                Input(name="pooled", dims=2, width=geometry.pooled_dim, wider=True, required=True, advice=_ENCODER),
                Input(name="attention_mask", dims=2, mask_of="context", advice=_ENCODER),
                Input(name="guidance", dims=1),
                Input(name="guiding_frame_index", dims=1),
                Input(name="ref_latent", dims=5, channels=geometry.in_channels, advice=_VAE),
            ),
        )

    def is_joint_attention(self, name: str) -> bool:
        # The text refiner's attention stays local.
        return name.startswith(("transformer_blocks.", "single_transformer_blocks.")) and name.endswith(".attn")

    def check_values(self, conditioning: Mapping[str, Tensor]) -> None:
        mask = conditioning.get("attention_mask")
        if mask is None:
            return
        # ComfyUI adds a mask of any other dtype to the attention's scores: that excludes no token.
        if mask.dtype not in (torch.int32, torch.int64) or bool((mask != mask.bool()).any()):
            raise UnsupportedInput("Give attention_mask as integers: 1 for a token that counts, 0 for any other.")
        if not bool(mask.any(dim=1).all()):
            raise BadRequest("Give every video a prompt: attention_mask leaves some without any token of text.")

    def alike(self, call: ModelCall) -> list[Tensor]:
        mask = call.conditioning.get("attention_mask")
        if mask is None:
            return []
        kinds = mask.unique(dim=0, return_inverse=True)[1]
        count = int(kinds.max()) + 1
        return [] if count == 1 else [(kinds == kind).nonzero().flatten() for kind in range(count)]

    def arrange(self, network: Any, geometry: HunyuanVideoGeometry, call: ModelCall) -> Arranged:
        given, context = call.conditioning, call.conditioning["context"]
        kept = torch.arange(context.shape[1], device=context.device)
        if "attention_mask" in given:
            kept = given["attention_mask"][0].nonzero().flatten()  # all rows have the same mask: see alike()
        latents = [given["ref_latent"], call.x] if "ref_latent" in given else [call.x]
        tokens = [math.prod(_grid(latent)) for latent in latents]
        guiding = given.get("guiding_frame_index")
        guided = guiding is not None
        cosines, sines = _rotary(latents)
        frame = math.prod(_grid(call.x)[1:])
        place = torch.arange(sum(tokens), device=call.x.device)[:, None]  # a column: channels come behind the tokens
        return Arranged(
            arguments={
                "latents": [pad_to_patches(latent, PATCH[1:]) for latent in latents],
                "timestep": call.timestep,
                "context": context,
                "kept": kept,
                "pooled": given["pooled"][:, : geometry.pooled_dim],
                "guidance": given.get("guidance"),
                "cosines": cosines,
                "sines": sines,
                "guiding": guiding,
                # Which tokens ComfyUI takes for the guiding frame's. Where it counts them, references and excluded text are not left out.
                "in_double": place < frame if guided else None,
                "in_single": context.shape[1] + place < frame if guided else None,
                "text_in_single": kept[:, None] < frame if guided else None,
                "at_the_end": place < sum(tokens[:-1]) + frame if guided else None,
            },
            streams={_VIDEO: sum(tokens), _TEXT: len(kept)},
            finish=lambda out: _as_video(out[:, -tokens[-1] :], call.x),
        )


def _grid(latent_BCFHW: Tensor) -> tuple[int, int, int]:
    """Patches along frames, height and width."""
    frames, height, width = latent_BCFHW.shape[2:]
    return frames, patches(height), patches(width)


def _rotary(latents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 ``[S, head_dim]``, each value twice. All frames of a reference stand at -1, to the right of the video."""
    *references, _ = positions = [_positions(latent) for latent in latents]
    for reference in references:
        reference[:, 0] = -1
        reference[:, 2] += _grid(latents[-1])[2]
    places = torch.cat(positions).double().unbind(1)
    turns = angles(places, _ROTARY_AXES, _THETA).repeat_interleave(2, dim=-1)
    return turns.cos().float(), turns.sin().float()


def _positions(latent: Tensor) -> Tensor:
    """``[S, 3]`` (frame, row, column), counted in the latent's dtype: ComfyUI rounds so, beyond 256 in bfloat16."""
    axes = [torch.linspace(0, n - 1, n, dtype=latent.dtype, device=latent.device) for n in _grid(latent)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def _as_video(tokens_BSP: Tensor, like_BCFHW: Tensor) -> Tensor:
    """Tokens ``[B, S, 4C]`` -> ``[B, C, F, H, W]``."""
    B, _, F, H, W = like_BCFHW.shape
    frames = unpack(tokens_BSP.unflatten(1, (F, -1)).flatten(0, 1), H, W)
    return frames.unflatten(0, (B, F)).transpose(1, 2)


class Network(nn.Module):
    """diffusers' transformer with a forward pass that also takes reference latents and a guiding frame. Parameters keep their names."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.x_embedder = transformer.x_embedder
        self.context_embedder = TextRefiner(transformer.context_embedder)
        self.time_text_embed = Vectors(transformer.time_text_embed)
        self.transformer_blocks = nn.ModuleList(map(DoubleBlock, transformer.transformer_blocks))
        self.single_transformer_blocks = nn.ModuleList(map(SingleBlock, transformer.single_transformer_blocks))
        self.norm_out, self.proj_out = transformer.norm_out, transformer.proj_out

    def forward(
        self, latents: Sequence[Tensor], timestep: Tensor, context: Tensor, kept: Tensor, pooled: Tensor, guidance: Tensor | None,
        cosines: Tensor, sines: Tensor, guiding: Tensor | None, in_double: Tensor | None, in_single: Tensor | None,
        text_in_single: Tensor | None, at_the_end: Tensor | None, return_dict: bool = False,
    ) -> tuple[Tensor]:  # fmt: skip
        """Tokens of all latents ``[B, S, 4C]``. ``guiding``: the guiding frame's time, ``[B]``; behind it, which tokens are that frame's."""
        video = torch.cat([self.x_embedder(latent) for latent in latents], dim=1)
        text = self.context_embedder(context, kept, timestep)
        vectors = self.time_text_embed(timestep, pooled, guidance, guiding)
        for block in self.transformer_blocks:
            video, text = block(video, text, vectors, (cosines, sines), in_double)
        for block in self.single_transformer_blocks:
            video, text = block(video, text, vectors, (cosines, sines), in_single, text_in_single)
        scale, shift = self.norm_out.linear(self.norm_out.silu(vectors)).chunk(2, dim=-1)
        video = self.norm_out.norm(video) * (1 + of_tokens(scale, at_the_end)) + of_tokens(shift, at_the_end)
        return (self.proj_out(video),)


class TextRefiner(nn.Module):
    """Text tokens for the blocks. Its attention is local: text is whole on every rank.

    Tokens that the mask excludes are never attended to, so they are cut off; but ComfyUI averages over all of them.
    """

    def __init__(self, refiner: Any) -> None:
        super().__init__()
        self.time_text_embed, self.proj_in = refiner.time_text_embed, refiner.proj_in
        self.token_refiner = refiner.token_refiner

    def forward(self, context_BTC: Tensor, kept: Tensor, timestep: Tensor) -> Tensor:
        """``[B, kept, hidden]``."""
        vector = self.time_text_embed(timestep, context_BTC.mean(dim=1))
        refined: Tensor = self.token_refiner(self.proj_in(context_BTC[:, kept]), vector)
        return refined


class Vectors(nn.Module):
    """What modulates the tokens. diffusers cannot leave guidance out, and knows no time of a guiding frame but 0."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.timestep_embedder, self.text_embedder = embedder.timestep_embedder, embedder.text_embedder
        self.guidance_embedder = embedder.guidance_embedder

    def forward(self, timestep: Tensor, pooled: Tensor, guidance: Tensor | None, guiding: Tensor | None) -> Tensor:
        """``[B, 1, hidden]``, or ``[B, 2, hidden]``: for the guiding frame's tokens, and for all others."""
        times = [timestep] if guiding is None else [guiding, timestep]
        embedded = [self.timestep_embedder(sinusoid(time, 1.0).to(pooled.dtype)) for time in times]
        vectors = torch.stack(embedded, dim=1) + self.text_embedder(pooled)[:, None]
        if guidance is None or self.guidance_embedder is None:
            return vectors
        strength = self.guidance_embedder(sinusoid(guidance).to(pooled.dtype))
        # ComfyUI adds [B, hidden] to [B, 2, hidden]: of two videos the first one's guidance goes to both guiding frames, the second one's to
        # all other frames. With one guidance for all, which is the rule, that is the same.
        return vectors + (strength if len(strength) == vectors.shape[1] == 2 else strength[:, None])


def _with_comfyuis_norms(attention: Any) -> Any:
    """Their epsilon is that of the dtype, not 1e-6."""
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        if getattr(attention, name) is not None:
            setattr(attention, name, nn.RMSNorm(HEAD_DIM))
    return attention


class DoubleBlock(nn.Module):
    """Video and text with weights of their own. Text is never of the guiding frame here."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2, self.ff = block.norm1, block.norm2, block.ff
        self.norm1_context, self.norm2_context, self.ff_context = (
            block.norm1_context,
            block.norm2_context,
            block.ff_context,
        )
        self.attn = _with_comfyuis_norms(block.attn)

    def forward(
        self, video: Tensor, text: Tensor, vectors: Tensor, rope: tuple[Tensor, Tensor], guiding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        of_video, of_text = Modulation(self.norm1, vectors), Modulation(self.norm1_context, vectors[:, -1:])
        attended, text_attended = self.attn(
            hidden_states=of_video.shifted(self.norm1.norm(video), guiding),
            encoder_hidden_states=of_text.shifted(self.norm1_context.norm(text), None),
            image_rotary_emb=rope,
        )
        video = video + of_video.gated(attended, guiding)
        text = text + of_text.gated(text_attended, None)
        mixed = self.ff(of_video.shifted(self.norm2(video), guiding, 1))
        text_mixed = self.ff_context(of_text.shifted(self.norm2_context(text), None, 1))
        return video + of_video.gated(mixed, guiding, 1), text + of_text.gated(text_mixed, None, 1)


class SingleBlock(nn.Module):
    """Video and text with the same weights, attention beside MLP."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm, self.proj_mlp, self.act_mlp, self.proj_out = (
            block.norm,
            block.proj_mlp,
            block.act_mlp,
            block.proj_out,
        )
        self.attn = _with_comfyuis_norms(block.attn)

    def forward(
        self, video: Tensor, text: Tensor, vectors: Tensor, rope: tuple[Tensor, Tensor], guiding: Tensor | None, text_guiding: Tensor | None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        modulation = Modulation(self.norm, vectors)
        normed = modulation.shifted(self.norm.norm(video), guiding)
        text_normed = modulation.shifted(self.norm.norm(text), text_guiding)
        out, text_out = self.attn(hidden_states=normed, encoder_hidden_states=text_normed, image_rotary_emb=rope)
        video = video + modulation.gated(self._mixed(out, normed), guiding)
        return video, text + modulation.gated(self._mixed(text_out, text_normed), text_guiding)

    def _mixed(self, attended: Tensor, normed: Tensor) -> Tensor:
        out: Tensor = self.proj_out(torch.cat((attended, self.act_mlp(self.proj_mlp(normed))), dim=2))
        return out
