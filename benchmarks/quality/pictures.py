"""Latents as pictures and back, in batches that fit: the autoencoder that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from torch import Tensor

from ...backend.demo.autoencoder import decode, load_autoencoder
from ...backend.errors import BadCheckpoint

_BATCH: Final = 25


class Autoencoder:
    """Pictures are uint8 ``[B, H, W, 3]``, latents float32 in model space ``[B, 16, H / 8, W / 8]``. Computes in float32 on the CPU."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises :class:`BadCheckpoint` when its tensors are not those of a TAESD with 16 channels."""
        try:
            self._network = load_autoencoder(path)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise BadCheckpoint(
                f"Choose an autoencoder in TAESD's layout with 16 channels: {path.name} is none."
            ) from error

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as pictures."""
        return torch.cat([decode(self._network, part) for part in torch.split(latents, _BATCH)])

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures as latents."""
        scaled = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        return torch.cat([self._network.encoder(part) for part in torch.split(scaled, _BATCH)])
