"""Latents as pictures and back, by the autoencoder that ships: TAESD's tensor names in the file, diffusers' ``AutoencoderTiny`` in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderTiny
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...backend.errors import BadCheckpoint

_NOT_A_PARAMETER: Final = ("vae_scale", "vae_shift")
"""FLUX.1's latent format, by which ComfyUI scales before TAESD scales back. A latent in model space needs neither."""
_PREFIX: Final = "taesd_"
_BATCH: Final = 25


class Autoencoder:
    """Pictures are uint8 ``[B, H, W, 3]``, latents float32 in model space ``[B, 16, H / 8, W / 8]``. Computes in float32 on the CPU."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises :class:`BadCheckpoint` when its tensors are not those of a TAESD with 16 channels."""
        build: Any = AutoencoderTiny
        network = build(latent_channels=16).requires_grad_(False).eval()
        try:
            network.load_state_dict(diffusers_names(load_file(path)))
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise BadCheckpoint(
                f"Choose an autoencoder in TAESD's layout with 16 channels: {path.name} is none."
            ) from error
        self._network = network

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents as pictures."""
        parts = [self._network.decoder(part.float()) for part in torch.split(latents, _BATCH)]
        scaled = ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round()
        return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures as latents."""
        scaled = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        return torch.cat([self._network.encoder(part) for part in torch.split(scaled, _BATCH)])


def diffusers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TAESD -> ``AutoencoderTiny``, float32. TAESD counts the clamp at the start of its decoder as layer 0; diffusers does not count it.

    Raises:
        ValueError: a name that TAESD does not have.
    """
    named = {}
    for name, tensor in tensors.items():
        if name in _NOT_A_PARAMETER:
            continue
        part, _, rest = name.removeprefix(_PREFIX).partition(".")
        index, _, leaf = rest.partition(".")
        if not name.startswith(_PREFIX) or part not in ("encoder", "decoder") or not index.isdecimal():
            raise ValueError(f"{name} is no parameter of TAESD")
        named[f"{part}.layers.{int(index) - (part == 'decoder')}.{leaf}"] = tensor.float()
    return named
