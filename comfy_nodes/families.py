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
    model_class="Flux",
    tensors={"c_crossattn": "context", "y": "pooled", "guidance": "guidance", "c_concat": "concat"},
    lists={"ref_latents": "ref_latents"},
    options=frozenset({"ref_latents_method"}),
    arguments=("context", "y", "guidance", "ref_latents", "control", "transformer_options"),
    advice="an Empty SD3 Latent Image, or a VAE Encode with FLUX's ae.safetensors",
)

FAMILIES: Final[tuple[Family, ...]] = (FLUX,)


def family_of(model_class: type) -> Family:
    """The family of one of ComfyUI's model classes.

    Raises:
        UnsupportedFamily: we do not run it.
    """
    for family in FAMILIES:
        if family.model_class == model_class.__name__ and model_class.__module__ == "comfy.model_base":
            return family
    names = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedFamily(
        f"Load this file with ComfyUI's own loader: it is a {model_class.__name__} model, and Tutti runs {names} so far."
    )
