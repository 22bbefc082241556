"""Qwen-Image, Qwen-Image-Edit (2509 and 2511 too) and Qwen-Image-Layered.

Authors, ComfyUI and diffusers name the parameters alike; only the marker tensor of 2511 is ComfyUI's own. The network itself is diffusers', but
what it is told about a token comes from here: diffusers places odd grids and text otherwise than ComfyUI, and rounds the timestep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...errors import BadCheckpoint, UnsupportedInput
from ...parallel.hooks import Gather, Split, SplitOutput
from ..checkpoint import Checkpoint
from ..family import Arranged, Family, ModelCall
from ..inputs import Input, Inputs, References
from ..keys import KeyMap, count_blocks, shape_of
from ..patches import PATCH, Placement, pack, patches, place_references, unpack
from ..references import REFERENCE, reference_method, references
from ..rotary import angles

HEAD_DIM: Final = 128
CHANNELS: Final = 16
ROTARY_AXES: Final = (16, 56, 56)
TIMESTEP_ZERO: Final = "index_timestep_zero"
NEGATIVE_INDEX: Final = "negative_index"
REFERENCE_METHODS: Final = ("offset", "index", "uxo", TIMESTEP_ZERO, NEGATIVE_INDEX)
"""ComfyUI's names. ``uxo`` means ``offset`` here, as every name does that its Qwen-Image does not know."""

_THETA: Final = 10_000.0
_MARKER: Final = "__index_timestep_zero__"
_LAYERED: Final = "time_text_embed.addition_t_embedding.weight"
_ENCODER: Final = "Use the text encoder that belongs to Qwen-Image (Qwen2.5-VL 7B in published models)"


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenImageGeometry:
    """Everything that Qwen-Image checkpoints differ in."""

    hidden: int
    depth: int
    context_dim: int
    """Width of the text encoder's tokens."""
    layered: bool = False
    """Whether a second embedding is added to the timestep's (Layered)."""
    marked: bool = False
    """Whether the file has the marker tensor that asks for timestep 0 on references (2511)."""

    @property
    def reference_method(self) -> str:
        """What holds where the conditioning names no method."""
        if self.layered:
            return NEGATIVE_INDEX
        return TIMESTEP_ZERO if self.marked else "index"


class QwenImage(Family[QwenImageGeometry]):
    """Qwen-Image. References are more image tokens behind the picture's own."""

    name = "qwen_image"
    label = "Qwen-Image"
    original_marks = ()
    diffusers_marks = (
        "txt_norm.weight",
        "txt_in.weight",
        "img_in.weight",
        "proj_out.weight",
        "transformer_blocks.0.txt_mod.1.weight",
        "transformer_blocks.0.img_mlp.net.2.weight",
        "transformer_blocks.0.attn.add_q_proj.weight",
    )
    # Its ControlNets, and those of VideoX-Fun.
    relatives = ("controlnet_blocks.", "controlnet_x_embedder.", "control_blocks.", "control_img_in.")
    splits = (
        Split("hidden_states", "image", 1),
        Split("encoder_hidden_states", "text", 1),
        SplitOutput("pos_embed", 0, "image", 0),
        SplitOutput("pos_embed", 1, "text", 0),
        SplitOutput("pos_embed", 2, "image", 1),
    )
    gather = Gather("proj_out", "image")

    def geometry(self, checkpoint: Checkpoint, named: Callable[[str], str]) -> QwenImageGeometry:
        hidden, inputs = shape_of(checkpoint, "img_in.weight")
        outputs = shape_of(checkpoint, "proj_out.weight")[0]
        per_token = CHANNELS * PATCH * PATCH
        if hidden % HEAD_DIM or hidden == 0 or (inputs, outputs) != (per_token, per_token):
            # Mage-Flow has the same tensor names.
            raise BadCheckpoint(
                f"Choose another checkpoint: a Qwen-Image has a width of whole {HEAD_DIM}-wide heads and {per_token} numbers per token, "
                f"this one is {hidden} wide with {inputs} inputs and {outputs} outputs per token."
            )
        return QwenImageGeometry(
            hidden=hidden,
            depth=count_blocks(checkpoint, "transformer_blocks"),
            context_dim=shape_of(checkpoint, "txt_norm.weight", dims=1)[0],
            layered=_LAYERED in checkpoint,
            marked=_MARKER in checkpoint,
        )

    def num_heads(self, geometry: QwenImageGeometry) -> int:
        return geometry.hidden // HEAD_DIM

    def key_map(self, geometry: QwenImageGeometry | None) -> KeyMap:
        return KeyMap(modules={})

    def network(self, geometry: QwenImageGeometry) -> Any:
        from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

        network: Any = QwenImageTransformer2DModel(
            patch_size=PATCH,
            in_channels=CHANNELS * PATCH * PATCH,
            out_channels=CHANNELS,
            num_layers=geometry.depth,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=geometry.hidden // HEAD_DIM,
            joint_attention_dim=geometry.context_dim,
            axes_dims_rope=ROTARY_AXES,
            use_additional_t_cond=geometry.layered,
        )
        network.time_text_embed = TimestepVector(network.time_text_embed)
        network.pos_embed = TokenFacts()
        for block in network.transformer_blocks:
            block.register_forward_pre_hook(_modulate_references, with_kwargs=True)
        network.norm_out.register_forward_pre_hook(_modulate_as_picture)
        if geometry.marked:
            network.register_buffer(_MARKER, torch.empty(0))
        return network

    def inputs(self, geometry: QwenImageGeometry) -> Inputs:
        return Inputs(
            label=self.label,
            dims=5,
            channels=CHANNELS,
            tensors=(
                Input(name="context", dims=3, width=geometry.context_dim, required=True, advice=_ENCODER),
                Input(name="attention_mask", dims=2, mask_of="context", advice=_ENCODER),
            ),
            references=References(prefix=REFERENCE, dims=5, channels=CHANNELS),
            choices=(reference_method(REFERENCE_METHODS),),
        )

    def is_joint_attention(self, name: str) -> bool:
        return name.endswith(".attn")

    def check_values(self, conditioning: Mapping[str, Tensor]) -> None:
        mask = conditioning.get("attention_mask")
        if mask is None:
            return
        if mask.is_floating_point():
            raise UnsupportedInput(
                "Give attention_mask as whole numbers, 1 for a token that counts: other masks are added to the attention's scores, "
                "which Tutti cannot do."
            )
        # ComfyUI's softmax over no token at all is a mean over masked ones.
        if not (mask > 0).any(dim=1).all():
            raise UnsupportedInput(
                "Connect text for every picture: an attention_mask without any token that counts does not work here."
            )

    def alike(self, call: ModelCall) -> list[Tensor]:
        mask = call.conditioning.get("attention_mask")
        if mask is None:
            return []
        masks, group_of = (mask > 0).unique(dim=0, return_inverse=True)
        return [(group_of == group).nonzero()[:, 0] for group in range(len(masks))]

    def arrange(self, network: Any, geometry: QwenImageGeometry, call: ModelCall) -> Arranged:
        x, others = call.x, references(call.conditioning)
        method = str(call.options.get("ref_latents_method", geometry.reference_method))
        at_zero = method == TIMESTEP_ZERO and bool(others)
        packed = [_pack(image) for image in (x, *(other.expand(len(x), -1, -1, -1, -1) for other in others))]
        picture, total = packed[0].shape[1], sum(tokens.shape[1] for tokens in packed)
        context, text_positions = _text(call)
        facts = (
            _rotations(_image_positions(x, others, method), x.dtype),
            _rotations(text_positions, x.dtype),
            (torch.arange(total, device=x.device) >= picture)[None] if at_zero else None,
        )
        timestep = torch.cat((call.timestep, torch.zeros_like(call.timestep))) if at_zero else call.timestep
        return Arranged(
            arguments={
                "hidden_states": torch.cat(packed, dim=1),
                "encoder_hidden_states": context,
                "timestep": call.timestep,
                "additional_t_cond": network.time_text_embed.vector(timestep, x.dtype),
                "img_shapes": facts,
            },
            streams={"text": context.shape[1], "image": total},
            finish=lambda out: _unpack(out[:, :picture], x.shape),
        )


def _pack(image_BCFHW: Tensor) -> Tensor:
    """Tokens ``[B, F h w, 4C]``, frame by frame."""
    frames = image_BCFHW.transpose(1, 2)
    return pack(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).flatten(1, 2)


def _unpack(tokens_BSP: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_pack` for a latent of ``shape``."""
    _, _, frames, height, width = shape
    pictures = tokens_BSP.unflatten(1, (frames, -1)).flatten(0, 1)
    return unpack(pictures, height, width).unflatten(0, (-1, frames)).transpose(1, 2)


def _text(call: ModelCall) -> tuple[Tensor, Tensor]:
    """The text tokens that count ``[B, T, context_dim]`` and their positions ``[T, 3]``: the same number on every axis.

    Text begins where half of the picture's longer side ends, references aside. A token keeps its place when those before it are masked.
    """
    context = call.conditioning["context"]
    index = torch.arange(context.shape[1], device=context.device)
    mask = call.conditioning.get("attention_mask")
    if mask is not None:
        # alike() has put rows of one mask together.
        index = index[mask[0] > 0]
        context = context[:, index]
    start = max(patches(side) // 2 for side in call.x.shape[3:])
    return context, (start + index)[:, None].expand(-1, len(ROTARY_AXES))


def _image_positions(x: Tensor, others: Sequence[Tensor], method: str) -> Tensor:
    """Positions ``[S, 3]`` (index, row, column) of the picture's tokens and its references'."""
    sizes = [(other.shape[3], other.shape[4]) for other in others]
    if method == NEGATIVE_INDEX:
        placements = [Placement(-number, 0, 0) for number in range(1, len(others) + 1)]
    else:
        own_index = method in ("index", TIMESTEP_ZERO)
        placements = place_references(sizes, "index" if own_index else "offset", (x.shape[3], x.shape[4]))
    placed = zip((x, *others), (Placement(0, 0, 0), *placements), strict=True)
    return torch.cat([_grid(image, placement) for image, placement in placed])


def _grid(image: Tensor, placement: Placement) -> Tensor:
    """Positions ``[F h w, 3]`` of one image: rows and columns count from its middle. Of several frames each has its own index, whatever the placement.

    ComfyUI counts in the compute dtype, before it centres: bfloat16 cannot tell all tokens beyond 256 apart, and its pictures show that.
    """
    frames, height, width = image.shape[2:]
    first_index = 0 if frames > 1 else placement.index
    index = torch.arange(first_index, first_index + frames, dtype=torch.float32, device=image.device)
    sides = [
        torch.linspace(first, first + count - 1, count, dtype=image.dtype, device=image.device).float() - count // 2
        for first, count in ((placement.row, patches(height)), (placement.column, patches(width)))
    ]
    return torch.cartesian_prod(index, *sides)


def _rotations(positions_S3: Tensor, dtype: torch.dtype) -> Tensor:
    """The rotation of every pair of channels as a complex number ``[S, head_dim / 2]``; cosine and sine rounded to ``dtype`` as in ComfyUI."""
    turned = angles(positions_S3.unbind(1), ROTARY_AXES, _THETA)
    return torch.complex(turned.cos().to(dtype).float(), turned.sin().to(dtype).float())


class TimestepVector(nn.Module):
    """The timestep as one vector per row, made before the transformer runs.

    diffusers rounds the timestep to the compute dtype before it is embedded; ComfyUI keeps it in float32. So the family calls
    :meth:`vector` and hands the result to the transformer as its additional condition, and :meth:`forward` passes it on.
    """

    time_proj: nn.Module
    timestep_embedder: nn.Module
    addition_t_embedding: nn.Embedding
    """Only in Layered."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        for name, child in embedder.named_children():
            self.add_module(name, child)

    def vector(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """``[rows, hidden]`` in ``dtype``, of ``timestep`` float32 ``[rows]``."""
        vector: Tensor = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        if hasattr(self, "addition_t_embedding"):
            # ComfyUI has no node for the second kind of picture: every row is of kind 0.
            vector = vector + self.addition_t_embedding.weight[0]
        return vector

    def forward(self, timestep: Tensor, hidden_states: Tensor, vector: Tensor) -> Tensor:
        return vector


class TokenFacts(nn.Module):
    """What the blocks need to know about tokens, passed on to where hooks cut it.

    The rotations of image tokens ``[S, head_dim / 2]``, those of text tokens ``[T, head_dim / 2]``, and which image tokens are modulated
    as of timestep 0, bool ``[1, S]`` or None.
    """

    def forward(
        self, facts: tuple[Tensor, Tensor, Tensor | None], max_txt_seq_len: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return facts


def _modulate_references(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before a block: tell it which of this rank's tokens are modulated as of timestep 0.

    diffusers fixes that with the network and would index all tokens on every rank; ComfyUI decides by the call.
    """
    image, text, at_zero = kwargs["image_rotary_emb"]
    block.zero_cond_t = at_zero is not None
    return args, {**kwargs, "image_rotary_emb": (image, text), "modulate_index": at_zero}


def _modulate_as_picture(norm: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Before the last norm: leave out the second half of the vectors, those of timestep 0."""
    hidden, vector = args
    return hidden, vector[: len(hidden)]
