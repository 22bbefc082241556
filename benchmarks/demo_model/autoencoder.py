"""The autoencoder: TAESD's layout (diffusers' ``AutoencoderTiny``) with FLUX's latent shape, 16 channels at an eighth of the size.

It is trained on crops. A little noise on the latent makes the decoder forgive what the flow gets slightly wrong; a penalty keeps every
channel near zero mean and unit variance, so that the latent needs no scaling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from .loop import train
from .scenes import draw, random_scene
from .start import initialise
from .state import TrainingState, dice_of, generator_of

PHASE: Final = "autoencoder"
CHANNELS: Final = 16
SIDE: Final = 128
CROP: Final = 64
CROPS_OF_ONE: Final = 2
_LATENT_NOISE: Final = 0.05
_UNIT_VARIANCE: Final = 0.02
_PEAK_RATE: Final = 8e-4


def new_autoencoder() -> Any:
    """An untrained one. ``encoder`` takes pictures in -1..1, ``decoder`` gives them."""
    torch.manual_seed(0)
    autoencoder: Any = AutoencoderTiny(latent_channels=CHANNELS)  # type: ignore[no-untyped-call]
    initialise(autoencoder)
    return autoencoder.to(memory_format=torch.channels_last)


def crops(step: int, batch: int) -> Tensor:
    """Pieces of fresh scenes, ``[batch, 3, 64, 64]`` in -1..1."""
    dice = dice_of(PHASE, step)
    pieces: list[Tensor] = []
    while len(pieces) < batch:
        picture = draw(random_scene(dice, count=dice.choice((2, 3))), SIDE, SIDE)
        for _ in range(CROPS_OF_ONE):
            x, y = dice.randrange(0, SIDE - CROP + 1), dice.randrange(0, SIDE - CROP + 1)
            pieces.append(torch.from_numpy(picture[y : y + CROP, x : x + CROP].copy()))
    return to_input(torch.stack(pieces[:batch]))


def to_input(pictures_BHWC: Tensor) -> Tensor:
    """uint8 pictures as the encoder takes them."""
    scaled = pictures_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


def train_autoencoder(folder: Path, *, steps: int, batch: int) -> tuple[Any, list[tuple[int, float]]]:
    """Train it, or go on; returns it with its curve."""
    autoencoder = new_autoencoder()
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=_PEAK_RATE, weight_decay=1e-4, betas=(0.9, 0.99))

    def step(number: int) -> float:
        pictures = crops(number, batch)
        noise = torch.randn(batch, CHANNELS, CROP // 8, CROP // 8, generator=generator_of(PHASE, number))
        with torch.autocast("cpu", torch.bfloat16):
            latent = autoencoder.encoder(pictures)
            rebuilt = autoencoder.decoder(latent + _LATENT_NOISE * noise)
        error = rebuilt.float() - pictures
        reconstruction = error.abs().mean() + 2 * error.square().mean()
        loss = reconstruction + _UNIT_VARIANCE * _strays(latent.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        return float(reconstruction.detach())

    state = TrainingState(folder / "autoencoder.state.safetensors", {"model": autoencoder}, {"adam": optimizer})
    curve = train(PHASE, step, steps=steps, optimizers=[optimizer], state=state, warm_up=min(100, steps // 4 + 1))
    return autoencoder, curve


def _strays(latent: Tensor) -> Tensor:
    """How far the channels are from zero mean and unit variance."""
    mean, variance = latent.mean((0, 2, 3)), latent.var((0, 2, 3))
    return mean.square().mean() + (variance.clamp_min(1e-4).log()).square().mean()


@torch.no_grad()
def psnr_db(autoencoder: Any, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio over all of ``pictures`` ``[B, 3, H, W]`` (-1..1), decoder output clamped."""
    rebuilt = autoencoder.decoder(autoencoder.encoder(pictures)).clamp(-1, 1)
    error = (rebuilt - pictures).square().mean() / 4
    return float(-10 * error.log10())
