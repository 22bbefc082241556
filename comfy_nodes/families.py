"""Which of ComfyUI's model classes we run, and what their conditioning is called on the wire. Plain data, one entry per family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ..backend.errors import UnsupportedFamily

SAMPLERS: Final = ("euler", "heun", "dpmpp_2m")
"""The samplers whose whole loop the daemon runs, by ComfyUI's names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One transformer architecture, as ComfyUI hands it its inputs."""

    name: str
    """The back end's name of it."""
    configs: frozenset[str]
    """The classes in ``comfy.supported_models`` that ComfyUI's detection gives for its files."""
    model_classes: frozenset[str]
    """Its classes in ``comfy.model_base``; a subclass is another family."""
    tensors: Mapping[str, str]
    """Key in ``model_conds`` -> tensor name on the wire."""
    lists: Mapping[str, str]
    """Key in ``model_conds`` that holds a list of tensors -> prefix on the wire (``ref_latents`` gives ``ref_latents.0``, ...)."""
    options: frozenset[str]
    """Keys in ``model_conds`` that hold a plain value; they keep their name."""
    arguments: tuple[str, ...]
    """What the network's forward takes by position after ``x`` and ``timestep``, in ComfyUI's order: wrappers index into it."""
    advice: str
    """What to use instead of a latent that does not fit."""
    consumed: frozenset[str] = frozenset()
    """Keys in ``model_conds`` that ComfyUI itself uses up before the network is called, and the network ignores."""
    shapes: tuple[str, ...] = ()
    """Parameters of the network whose shape ComfyUI reads."""
    parts: tuple[str, ...] = ()
    """Other attributes of the network that ComfyUI uses: taken from its own network, built without weights."""
    idle: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Key in ``model_conds`` that holds a list of settings -> the values with which one of them changes nothing; any other is refused."""


FLUX: Final = Family(
    name="flux",
    configs=frozenset({"Flux", "FluxInpaint", "FluxSchnell"}),
    model_classes=frozenset({"Flux"}),
    tensors={"c_crossattn": "context", "y": "pooled", "guidance": "guidance", "c_concat": "concat"},
    lists={"ref_latents": "ref_latents"},
    options=frozenset({"ref_latents_method"}),
    arguments=("context", "y", "guidance", "ref_latents", "control", "transformer_options"),
    advice="an Empty SD3 Latent Image, or a VAE Encode with FLUX's ae.safetensors",
    shapes=("img_in.weight",),
)

# No "y": the network has no place for a pooled vector, and FLUX.2's text encoders make none.
FLUX2: Final = Family(
    name="flux2",
    configs=frozenset({"Flux2"}),
    model_classes=frozenset({"Flux2"}),
    tensors={"c_crossattn": "context", "guidance": "guidance", "c_concat": "concat"},
    lists={"ref_latents": "ref_latents"},
    options=frozenset({"ref_latents_method"}),
    arguments=("context", "y", "guidance", "ref_latents", "control", "transformer_options"),
    advice="an Empty Flux 2 Latent, or a VAE Encode with FLUX.2's flux2-vae.safetensors",
    shapes=("img_in.weight",),
)

WAN: Final = Family(
    name="wan",
    configs=frozenset({"WAN21_T2V", "WAN21_I2V", "WAN22_T2V"}),
    model_classes=frozenset({"WAN21", "WAN22"}),
    tensors={"c_crossattn": "context", "clip_fea": "clip_features", "c_concat": "concat"},
    lists={},
    options=frozenset(),
    arguments=("context", "clip_fea", "time_dim_concat", "transformer_options"),
    advice="an Empty HunyuanVideo 1.0 Latent or Wan Image To Video; for the 5B model, Wan22 Image To Video Latent",
    consumed=frozenset({"denoise_mask"}),
    shapes=("patch_embedding.weight",),
)

SD3: Final = Family(
    name="sd3",
    configs=frozenset({"SD3"}),
    model_classes=frozenset({"SD3"}),
    tensors={"c_crossattn": "context", "y": "pooled"},
    lists={},
    options=frozenset(),
    arguments=("context", "y", "control", "transformer_options"),
    advice="an Empty SD3 Latent Image, or a VAE Encode with the VAE of Stable Diffusion 3",
)

# Its class in comfy.model_base is Lumina 2's too; Omni's inputs (ref_latents, ref_contexts, siglip_feats) and NewBie's (clip_text_pooled) are
# not listed, and so refused. The network reads neither attention_mask nor num_tokens, here and there.
Z_IMAGE: Final = Family(
    name="z_image",
    configs=frozenset({"ZImage"}),
    model_classes=frozenset({"Lumina2"}),
    tensors={"c_crossattn": "context", "attention_mask": "attention_mask"},
    lists={},
    options=frozenset({"num_tokens"}),
    arguments=("context", "num_tokens", "attention_mask"),
    advice="an Empty SD3 Latent Image, or a VAE Encode with FLUX's ae.safetensors",
)

QWEN_IMAGE: Final = Family(
    name="qwen_image",
    configs=frozenset({"QwenImage"}),
    model_classes=frozenset({"QwenImage"}),
    tensors={"c_crossattn": "context", "attention_mask": "attention_mask"},
    lists={"ref_latents": "ref_latents"},
    options=frozenset({"ref_latents_method"}),
    arguments=("context", "attention_mask", "ref_latents", "additional_t_cond", "transformer_options"),
    advice="an Empty SD3 Latent Image (Empty Qwen Image Layered Latent for Layered), or a VAE Encode with the Qwen-Image VAE",
)


LTX_VIDEO: Final = Family(
    name="ltx_video",
    configs=frozenset({"LTXV"}),
    model_classes=frozenset({"LTXV"}),
    tensors={
        "c_crossattn": "context",
        "attention_mask": "attention_mask",
        "denoise_mask": "denoise_mask",
        "keyframe_idxs": "keyframe_idxs",
    },
    lists={},
    options=frozenset({"frame_rate"}),
    # ComfyUI passes what comes after these (denoise_mask) by name.
    arguments=("context", "attention_mask", "frame_rate", "transformer_options", "keyframe_idxs"),
    advice="an Empty LTXV Latent Video, or LTXV Img To Video",
    parts=("patchifier",),
    # Guides at full strength and without a mask of their own are tokens like any others.
    idle={"guide_attention_entries": {"strength": 1.0, "pixel_mask": None}},
)

HUNYUAN_VIDEO: Final = Family(
    name="hunyuan_video",
    configs=frozenset({"HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V"}),
    model_classes=frozenset({"HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V"}),
    tensors={
        "c_crossattn": "context",
        "y": "pooled",
        "guidance": "guidance",
        "attention_mask": "attention_mask",
        "guiding_frame_index": "guiding_frame_index",
        "ref_latent": "ref_latent",
        "c_concat": "concat",
    },
    lists={},
    options=frozenset(),
    arguments=(
        "context",
        "y",
        "txt_byt5",
        "clip_fea",
        "guidance",
        "attention_mask",
        "guiding_frame_index",
        "ref_latent",
        "disable_time_r",
        "control",
        "transformer_options",
    ),
    advice="an Empty HunyuanVideo 1.0 Latent, or Hunyuan Image To Video",
)

FAMILIES: Final[tuple[Family, ...]] = (FLUX, WAN, SD3, Z_IMAGE, QWEN_IMAGE, FLUX2, LTX_VIDEO, HUNYUAN_VIDEO)


def family_of(config_class: type) -> Family:
    """The family of what ComfyUI's detection found.

    Raises:
        UnsupportedFamily: we do not run it.
    """
    for family in FAMILIES:
        if config_class.__name__ in family.configs and config_class.__module__ == "comfy.supported_models":
            return family
    raise unsupported(config_class.__name__)


def unsupported(found: str) -> UnsupportedFamily:
    """For a file that ComfyUI runs and we do not."""
    names = ", ".join(family.name for family in FAMILIES)
    return UnsupportedFamily(
        f"Load this file with ComfyUI's own loader: its family is {found}, and Tutti runs {names} so far."
    )
