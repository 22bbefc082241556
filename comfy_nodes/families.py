"""Which of ComfyUI's model classes we run, and what their conditioning is called on the wire. Plain data, one entry per family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    model_class: str
    """Its class in ``comfy.model_base``; a subclass is another family."""
    tensors: Mapping[str, str]
    """Key in ``model_conds`` -> tensor name on the wire."""
    lists: Mapping[str, str]
    """Key in ``model_conds`` that holds a list of tensors -> prefix on the wire (``ref_latents`` gives ``ref_latents.0``, ...)."""
    options: frozenset[str]
    """Keys in ``model_conds`` that hold a plain value; they keep their name."""
    arguments: tuple[str, ...]
    """What the network's forward takes after ``x`` and ``timestep``, in ComfyUI's order: wrappers index into it."""
    advice: str
    """What to use instead of a latent that does not fit."""


FLUX: Final = Family(
    name="flux",
    configs=frozenset({"Flux", "FluxInpaint", "FluxSchnell"}),
    model_class="Flux",
    tensors={"c_crossattn": "context", "y": "pooled", "guidance": "guidance", "c_concat": "concat"},
    lists={"ref_latents": "ref_latents"},
    options=frozenset({"ref_latents_method"}),
    arguments=("context", "y", "guidance", "ref_latents", "control", "transformer_options"),
    advice="an Empty SD3 Latent Image, or a VAE Encode with FLUX's ae.safetensors",
)

WAN: Final = Family(
    name="wan",
    configs=frozenset({"WAN21_T2V", "WAN21_I2V", "WAN22_T2V"}),
    model_class="WAN21",
    tensors={"c_crossattn": "context", "clip_fea": "clip_features", "c_concat": "concat"},
    lists={},
    options=frozenset(),
    arguments=("context", "clip_fea", "time_dim_concat", "transformer_options"),
    advice="an Empty Hunyuan Latent Video, or Wan Image To Video",
)

QWEN_IMAGE: Final = Family(
    name="qwen_image",
    configs=frozenset({"QwenImage"}),
    model_class="QwenImage",
    tensors={"c_crossattn": "context", "attention_mask": "attention_mask"},
    lists={"ref_latents": "ref_latents"},
    options=frozenset({"ref_latents_method"}),
    arguments=("context", "attention_mask", "ref_latents", "additional_t_cond", "transformer_options"),
    advice="an Empty SD3 Latent Image (Empty Qwen Image Layered Latent for Layered), or a VAE Encode with the Qwen-Image VAE",
)

FAMILIES: Final[tuple[Family, ...]] = (FLUX, WAN, QWEN_IMAGE)


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
        f"Load this file with ComfyUI's own loader: it is a {found} model, and Tutti runs {names} so far."
    )
