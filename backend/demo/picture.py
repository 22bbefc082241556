"""A latent as a picture, for a checkpoint that has no autoencoder: its three principal components as red, green and blue."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

PIXELS_PER_CELL = 8
"""A latent cell stands for 8 x 8 pixels, as in FLUX.1's autoencoder."""


def latent_to_rgb(latent_CHW: Tensor) -> Tensor:
    """Project ``[C, H, W]`` onto its three principal components and stretch each to 0..255. Returns uint8 ``[H, W, 3]``.

    Components are ordered by variance; the sign of each is fixed by its largest weight, so that equal latents give equal pictures.
    """
    channels, height, width = latent_CHW.shape
    cells = latent_CHW.reshape(channels, -1).double()
    cells = cells - cells.mean(dim=1, keepdim=True)
    _, vectors = torch.linalg.eigh(cells @ cells.T)  # ascending
    axes = vectors[:, -3:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    view = axes.T @ cells
    low, high = view.quantile(0.01, dim=1, keepdim=True), view.quantile(0.99, dim=1, keepdim=True)
    scaled = ((view - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    rgb: Tensor = (scaled * 255).round().to(torch.uint8).reshape(3, height, width)
    return rgb.permute(1, 2, 0).contiguous()


def write_png(latent_CHW: Tensor, path: Path) -> tuple[int, int]:
    """Write the picture of a latent, 8 pixels a cell. Returns its (width, height) in pixels."""
    small = Image.fromarray(latent_to_rgb(latent_CHW).numpy())
    size = (small.width * PIXELS_PER_CELL, small.height * PIXELS_PER_CELL)
    small.resize(size, Image.Resampling.BICUBIC).save(path)
    return size
