"""FLUX.2 (dev, klein): text to picture, and pictures made with others as references.

One set of shifts, scales and gates serves all blocks of a kind. A token is one latent pixel of 128 channels; its position has four axes: index (which picture), row,
column, and the place in the text. The text arrives as ComfyUI pads it, and all of it counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from ...errors import BadCheckpoint
from ...parallel.hooks import Gather, Split
from ..checkpoint import Checkpoint
from ..embeddings import sinusoid
from ..family import Arranged, Family, ModelCall
from ..inputs import Input, Inputs, References
from ..keys import KeyMap, Names, Rows, Stack, Swapped, count_blocks, shape_of
from ..norms import use_torchs_epsilon
from ..patches import Placement, grid_positions, place_references
from ..references import REFERENCE, reference_method, references

HEAD_DIM: Final = 128
ROTARY_AXES: Final = (32, 32, 32, 32)
REFERENCE_METHODS: Final = ("index", "index_timestep_zero", "offset", "uxo")
"""ComfyUI's names, its default for FLUX.2 first."""
_THETA: Final = 2000
_MLP_RATIO: Final = 3.0
_INDEX_STEP: Final = 10
_IMAGE: Final = "image"
_TEXT: Final = "text"

_TOP: Final[Names] = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": Swapped("final_layer.adaLN_modulation.1"),
    "proj_out": "final_layer.linear",
}
_DOUBLE: Final = Stack(
    "double_blocks",
    {
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
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
    },
)
_SINGLE: Final = Stack(
    "single_blocks",
    {
        "attn.to_qkv_mlp_proj": "linear1",
        "attn.to_out": "linear2",
        "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
    },
)
_STACKS: Final = {"transformer_blocks": _DOUBLE, "single_transformer_blocks": _SINGLE}
_ENCODER: Final = (
    "Use the text encoder that belongs to this FLUX.2 (Mistral 3 Small for dev, Qwen3 4B or 8B for klein 4B or 9B)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flux2Geometry:
    """Everything that FLUX.2 checkpoints differ in."""

    hidden: int
    depth: int
    """Double-stream blocks."""
    depth_single: int
    in_channels: int
    """Latent channels that the network takes: 128, more with concatenated conditions."""
    out_channels: int
    context_dim: int
    """Width of the text encoder's tokens: three layers' side by side."""
    guidance: bool
    """Whether guidance is an input (dev) or not (klein)."""


class Flux2(Family[Flux2Geometry]):
    """FLUX.2."""

    name = "flux2"
    label = "FLUX.2"
    original_marks = (
        "double_blocks.0.img_attn.qkv.weight",
        "img_in.weight",
        "double_stream_modulation_img.lin.weight",
        "single_stream_modulation.lin.weight",
    )
    diffusers_marks = (
        "transformer_blocks.0.attn.add_q_proj.weight",
        "x_embedder.weight",
        "double_stream_modulation_img.linear.weight",
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight",
    )
    # FLUX.1 in both namings, Chroma, Ovis.
    relatives = (
        "vector_in.", "time_text_embed.", "double_blocks.0.img_mod.", "distilled_guidance_layer.", "txt_norm.",
        "double_blocks.0.img_mlp.gate_proj.",
    )  # fmt: skip
    # ComfyUI's own modules name the query and key norms .weight, published files .scale.
    spellings = {"_norm.weight": "_norm.scale"}  # noqa: RUF012 - read only
    splits = (
        Split("hidden_states", _IMAGE, 1),
        Split("img_ids", _IMAGE, 0),
        Split("encoder_hidden_states", _TEXT, 1),
        Split("txt_ids", _TEXT, 0),
        # Marks of tokens, where a call has them: see VectorEmbedder.
        Split("timestep", _IMAGE, 1, only_with_dims=2),
        Split("guidance", _TEXT, 1),
    )
    gather = Gather("proj_out", _IMAGE)

    def geometry(self, checkpoint: Checkpoint, named: Callable[[str], str]) -> Flux2Geometry:
        hidden, in_channels = shape_of(checkpoint, named("x_embedder.weight"))
        out_channels = shape_of(checkpoint, named("proj_out.weight"))[0]
        if hidden % HEAD_DIM or 0 in (hidden, in_channels, out_channels):
            raise BadCheckpoint(
                f"Choose another checkpoint: a FLUX.2 has a width of whole {HEAD_DIM}-wide heads, this one is {hidden} wide "
                f"with {in_channels} inputs and {out_channels} outputs per token."
            )
        original = self.is_original(checkpoint)
        guidance = named("time_guidance_embed.guidance_embedder.linear_1.weight").removesuffix("weight")
        return Flux2Geometry(
            hidden=hidden,
            depth=count_blocks(checkpoint, "double_blocks" if original else "transformer_blocks"),
            depth_single=count_blocks(checkpoint, "single_blocks" if original else "single_transformer_blocks"),
            in_channels=in_channels,
            out_channels=out_channels,
            context_dim=shape_of(checkpoint, named("context_embedder.weight"))[1],
            guidance=any(name.startswith(guidance) for name in checkpoint.names),
        )

    def num_heads(self, geometry: Flux2Geometry) -> int:
        return geometry.hidden // HEAD_DIM

    def key_map(self, geometry: Flux2Geometry | None) -> KeyMap:
        return KeyMap(modules=_TOP, stacks=_STACKS, unit=geometry.hidden if geometry else 0)

    def network(self, geometry: Flux2Geometry) -> Any:
        from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

        network: Any = Flux2Transformer2DModel(
            patch_size=1,
            in_channels=geometry.in_channels,
            out_channels=geometry.out_channels,
            num_layers=geometry.depth,
            num_single_layers=geometry.depth_single,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=geometry.hidden // HEAD_DIM,
            joint_attention_dim=geometry.context_dim,
            mlp_ratio=_MLP_RATIO,
            axes_dims_rope=ROTARY_AXES,
            rope_theta=_THETA,
            guidance_embeds=geometry.guidance,
        )
        network.time_guidance_embed = VectorEmbedder(network.time_guidance_embed)
        network.double_stream_modulation_img = Modulation(network.double_stream_modulation_img, "image_marks")
        network.double_stream_modulation_txt = Modulation(network.double_stream_modulation_txt, None)
        network.single_stream_modulation = Modulation(network.single_stream_modulation, "all_marks")
        network.norm_out = LastNorm(network.norm_out)
        use_torchs_epsilon(network)
        return network

    def inputs(self, geometry: Flux2Geometry) -> Inputs:
        return Inputs(
            label=self.label,
            dims=4,
            channels=geometry.in_channels,
            answer_channels=geometry.out_channels,
            tensors=(
                Input(name="context", dims=3, width=geometry.context_dim, required=True, advice=_ENCODER),
                Input(name="guidance", dims=1),
            ),
            references=References(prefix=REFERENCE, dims=4, channels=geometry.in_channels),
            choices=(reference_method(REFERENCE_METHODS),),
        )

    def is_joint_attention(self, name: str) -> bool:
        # Double and single blocks alike attend to text and image together.
        return name.endswith(".attn")

    def arrange(self, network: Any, geometry: Flux2Geometry, call: ModelCall) -> Arranged:
        context = call.conditioning["context"]
        method = str(call.options.get("ref_latents_method", REFERENCE_METHODS[0]))
        tokens, positions = _image_tokens(call, method)
        height, width = call.x.shape[2:]
        others_at_zero = method == "index_timestep_zero" and tokens.shape[1] > height * width
        network.time_guidance_embed.prepare(
            call.timestep, call.conditioning.get("guidance"), call.x.dtype, others_at_zero=others_at_zero
        )
        timestep, text_marks = call.timestep, None
        if others_at_zero:
            timestep = call.x.new_ones(1, tokens.shape[1])
            timestep[:, : height * width] = 0
            text_marks = call.x.new_zeros(1, context.shape[1])
        return Arranged(
            arguments={
                "hidden_states": tokens,
                "encoder_hidden_states": context,
                "timestep": timestep,
                "img_ids": positions,
                "txt_ids": pad(torch.arange(context.shape[1], device=context.device)[:, None], (3, 0)),
                "guidance": text_marks,
            },
            streams={_TEXT: context.shape[1], _IMAGE: tokens.shape[1]},
            finish=lambda out: out[:, : height * width].transpose(1, 2).unflatten(2, (height, width)),
        )


def _image_tokens(call: ModelCall, method: str) -> tuple[Tensor, Tensor]:
    """Tokens ``[B, S, C]`` and positions ``[S, 4]`` of the picture and, behind it, its references."""
    x, others = call.x, references(call.conditioning)
    placed = "index" if method == "index_timestep_zero" else method
    sizes = [(reference.shape[2], reference.shape[3]) for reference in others]
    placements = [
        Placement(0, 0, 0),
        *place_references(sizes, placed, (x.shape[2], x.shape[3]), patch=1, index_step=_INDEX_STEP),
    ]
    images = [x, *(reference.expand(len(x), -1, -1, -1) for reference in others)]
    positions = [
        grid_positions(image.shape[2], image.shape[3], placement, x.device, patch=1)
        for image, placement in zip(images, placements, strict=True)
    ]
    tokens = [image.flatten(2).transpose(1, 2) for image in images]
    return torch.cat(tokens, dim=1), pad(torch.cat(positions), (0, 1))


class Vectors(NamedTuple):
    """What the tokens of a call are modulated by."""

    picture: Tensor
    """``[B, hidden]``"""
    others: Tensor | None
    """The same for references, where they have another timestep than the picture."""
    image_marks: Tensor | None = None
    """This rank's image tokens, bool ``[1, tokens]``: whether a token is a reference's. None: all go with the picture."""
    all_marks: Tensor | None = None
    """The same for text and image tokens, as the single-stream blocks have them."""


class VectorEmbedder(nn.Module):
    """Timestep and guidance as one vector, made before the transformer runs; stands where diffusers' embedder stood.

    diffusers rounds timestep and guidance to the compute dtype before it multiplies them by 1000; ComfyUI keeps the timestep in float32. Nor can
    diffusers give references a timestep of their own while all tokens attend to each other. So the family calls :meth:`prepare`, and the
    transformer's arguments ``timestep`` and ``guidance``, which reach :meth:`forward`, are free for the marks of image and text tokens:
    they are cut like the tokens themselves. Parameters keep their diffusers names.
    """

    timestep_embedder: nn.Module
    guidance_embedder: nn.Module | None
    """Only where guidance is an input."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.timestep_embedder = embedder.timestep_embedder
        self.guidance_embedder = embedder.guidance_embedder
        self._vectors: Vectors | None = None

    def prepare(self, timestep: Tensor, guidance: Tensor | None, dtype: torch.dtype, *, others_at_zero: bool) -> None:
        """Make the vectors of the next call. ``timestep`` is float32 ``[B]``; ``guidance``, ``[B]``, keeps the dtype it has."""
        others = self._vector(torch.zeros_like(timestep), guidance, dtype) if others_at_zero else None
        self._vectors = Vectors(picture=self._vector(timestep, guidance, dtype), others=others)

    def _vector(self, timestep: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        vector: Tensor = self.timestep_embedder(sinusoid(timestep).to(dtype))
        if guidance is not None and self.guidance_embedder is not None:
            vector = vector + self.guidance_embedder(sinusoid(guidance).to(dtype))
        return vector

    def forward(self, image_marks: Tensor, text_marks: Tensor | None) -> Vectors:
        """Marks are ``[1, tokens]``, not 0 for references. Without text marks there are none, and ``image_marks`` is the plain timestep."""
        assert self._vectors is not None
        if text_marks is None:
            return self._vectors
        marks = image_marks != 0
        return self._vectors._replace(image_marks=marks, all_marks=torch.cat((text_marks != 0, marks), dim=1))


class Modulation(nn.Module):
    """Shifts, scales and gates of all blocks of a kind: the same for every token, or one of two by the token's mark."""

    linear: nn.Module

    def __init__(self, modulation: Any, marks: Literal["image_marks", "all_marks"] | None) -> None:
        super().__init__()
        self.linear = modulation.linear
        self._marks = marks

    def forward(self, vectors: Vectors) -> Tensor:
        """``[B, values]``, or ``[B, tokens, values]`` where tokens are marked."""
        values: Tensor = self.linear(silu(vectors.picture))
        marks = getattr(vectors, self._marks) if self._marks else None
        if marks is None or vectors.others is None:
            return values
        return torch.where(marks[:, :, None], self.linear(silu(vectors.others))[:, None], values[:, None])


class LastNorm(nn.Module):
    """diffusers' last norm by the picture's vector: what becomes of references is thrown away."""

    linear: nn.Module
    norm: nn.Module

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.linear, self.norm = norm.linear, norm.norm

    def forward(self, x_BnC: Tensor, vectors: Vectors) -> Tensor:
        scale, shift = self.linear(silu(vectors.picture))[:, None].chunk(2, dim=-1)
        out: Tensor = self.norm(x_BnC) * (1 + scale) + shift
        return out
