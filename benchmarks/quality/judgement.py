"""What is said about a setting: how many prompts it kept, and how far its latents and pictures are from the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..demo_model.scenes import draw
from ..report import Figure, Spread
from .checker import check
from .metrics import frechet_distance, pooled_features, psnr_db, relative_error, ssim
from .pictures import Autoencoder
from .prompts import SIDE, Prompt

ACCURACY: Final = {1: "prompt accuracy, one object", 2: "prompt accuracy, two objects with places"}
LOST: Final = "prompt accuracy lost"
FRECHET: Final = "Fréchet distance, demo autoencoder features"
RECONSTRUCTION: Final = "PSNR of the autoencoder on unseen scenes"
DRAWN: Final = "drawn scenes through the autoencoder"
"""The checker's ceiling: scenes that show what was asked for, with the autoencoder's own losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """All prompts under one setting."""

    name: str
    latents: Tensor
    """float32 ``[N, 16, 16, 16]``"""
    pictures: Tensor
    """uint8 ``[N, H, W, 3]``"""
    kept: tuple[bool, ...]
    """For each prompt, whether everything it asked for is in the picture."""
    features: Tensor
    """float64 ``[N, 32]``, of the pictures as they are seen"""


def look_at(name: str, latents: Tensor, prompts: Sequence[Prompt], autoencoder: Autoencoder) -> Shown:
    """Decode the latents, and look for what was asked."""
    pictures = autoencoder.decode(latents)
    kept = tuple(all(check(picture.numpy(), prompt.asked)) for picture, prompt in zip(pictures, prompts, strict=True))
    features = pooled_features(autoencoder.encode(pictures))
    return Shown(name=name, latents=latents, pictures=pictures, kept=kept, features=features)


def drawn_scenes(prompts: Sequence[Prompt]) -> Tensor:
    """What the captions were made from, uint8 ``[N, 128, 128, 3]``."""
    return torch.stack([torch.from_numpy(draw(prompt.scene, SIDE, SIDE).copy()) for prompt in prompts])


def reconstruction_figure(ceiling: Shown, drawn: Tensor) -> Figure:
    """How well the autoencoder gives scenes back that it never saw."""
    return Figure(
        case=DRAWN, metric=RECONSTRUCTION, spread=Spread.of(psnr_db(ceiling.pictures, drawn).tolist()), unit="dB"
    )


def accuracy_figures(shown: Shown, prompts: Sequence[Prompt]) -> list[Figure]:
    """The share of prompts of each kind that were kept."""
    figures = []
    for objects, metric in ACCURACY.items():
        kept = [kept for kept, prompt in zip(shown.kept, prompts, strict=True) if prompt.objects == objects]
        if kept:
            figures.append(Figure.one(case=shown.name, metric=metric, value=sum(kept) / len(kept), unit="share"))
    return figures


def distance_figures(shown: Shown, reference: Shown) -> list[Figure]:
    """How far a setting is from the reference, prompt by prompt and as a set."""
    baseline = reference.name

    def spread(metric: str, values: Tensor, unit: str) -> Figure:
        return Figure(case=shown.name, metric=metric, spread=Spread.of(values.tolist()), unit=unit, baseline=baseline)

    figures = [
        spread("relative latent error", relative_error(shown.latents, reference.latents), ""),
        spread("PSNR", psnr_db(shown.pictures, reference.pictures), "dB"),
        spread("SSIM", ssim(shown.pictures, reference.pictures), ""),
    ]
    one = frechet_distance(shown.features, reference.features)
    return [*figures, Figure.one(case=shown.name, metric=FRECHET, value=one, unit="", baseline=baseline)]


def loss_figure(shown: Shown, reference: Shown) -> Figure:
    """How many of a hundred prompts a setting keeps less than the reference does; negative where it keeps more."""
    lost = 100 * (sum(reference.kept) - sum(shown.kept)) / len(shown.kept)
    return Figure.one(case=shown.name, metric=LOST, value=lost, unit="points", baseline=reference.name)


def gain_figure(shown: Shown, other: Shown, reference: Shown) -> Figure:
    """How much nearer to the reference a setting is than another: between the medians of their PSNR."""
    own_db, other_db = (Spread.of(psnr_db(one.pictures, reference.pictures).tolist()).p50 for one in (shown, other))
    return Figure.one(
        case=shown.name, metric=gain_over(other.name), value=own_db - other_db, unit="dB", baseline=other.name
    )


def gain_over(name: str) -> str:
    """The metric of :func:`gain_figure`."""
    return f"median PSNR above that of {name}"


def exchange_figure(name: str, bytes_each: float) -> Figure:
    """What all ranks sent for one picture, key frames included. They travel in the setting's dtype where they are not encoded."""
    return Figure.one(case=name, metric="exchanged for a picture", value=bytes_each, unit="bytes")
