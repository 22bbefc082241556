"""The shipped autoencoder in diffusers: latents to pictures.

The file has TAESD's layout, which ComfyUI loads as it is; diffusers' ``AutoencoderTiny`` is the same network under other names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from .request import CHANNELS


def diffusers_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """TAESD -> ``AutoencoderTiny``. TAESD's decoder counts its clamp as layer 0; its scale and shift are ComfyUI's affair.

    Raises:
        ValueError: a name that TAESD does not have.
    """
    named = {}
    for name, tensor in weights.items():
        if name in ("vae_scale", "vae_shift"):
            continue
        part, _, rest = name.removeprefix("taesd_").partition(".")
        place, _, leaf = rest.partition(".")
        if part not in ("encoder", "decoder") or not place.isdecimal():
            raise ValueError(f"{name} is no parameter of TAESD")
        named[f"{part}.layers.{int(place) - (part == 'decoder')}.{leaf}"] = tensor
    return named


def load_autoencoder(path: Path) -> Any:
    """The autoencoder of a file, float32 on the CPU."""
    autoencoder: Any = AutoencoderTiny(latent_channels=CHANNELS)  # type: ignore[no-untyped-call]
    autoencoder.load_state_dict({name: tensor.float() for name, tensor in diffusers_names(load_file(path)).items()})
    return autoencoder.requires_grad_(False).eval()


def decode(autoencoder: Any, latents: Tensor) -> Tensor:
    """Latents in model space ``[B, 16, H, W]`` -> pictures uint8 ``[B, 8 H, 8 W, 3]``."""
    with torch.no_grad():
        pictures: Tensor = autoencoder.decoder(latents.float())
    scaled = (pictures.clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
