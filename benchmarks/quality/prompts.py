"""The prompts that every setting gets: captions that no training saw, what they ask for, and the noise that each starts from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..demo_model.scenes import Scene, held_out_scene
from .checker import Asked

LATENT_SHAPE: Final = (16, 16, 16)
"""Channels, rows and columns of a picture of 128 x 128."""
SIDE: Final = 128
_OBJECTS: Final = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt of the set."""

    number: int
    """Its place in the set, and the seed of its noise."""
    scene: Scene
    """What its caption was made from."""

    @property
    def text(self) -> str:
        """The caption."""
        return self.scene.caption

    @property
    def objects(self) -> int:
        """One or two."""
        return len(self.scene.things)

    @property
    def asked(self) -> list[Asked]:
        """What counts: shape and colour of a single object, and of two objects their places as well."""
        with_place = self.objects > 1
        return [
            Asked(shape=thing.shape, colour=thing.colour, place=thing.place if with_place else None)
            for thing in self.scene.things
        ]

    def noise(self) -> Tensor:
        """``[16, 16, 16]``: the same whichever prompts share a batch with it."""
        return torch.randn(LATENT_SHAPE, generator=torch.Generator().manual_seed(self.number))


def prompt_set(count: int) -> list[Prompt]:
    """The first ``count`` prompts, one object and two objects in turn. The same at every run."""
    dice = {objects: random.Random(f"quality {objects}") for objects in _OBJECTS}
    kinds = [_OBJECTS[number % 2] for number in range(count)]
    return [
        Prompt(number=number, scene=held_out_scene(dice[objects], count=objects))
        for number, objects in enumerate(kinds)
    ]


def noise_of(prompts: Sequence[Prompt]) -> Tensor:
    """``[B, 16, 16, 16]``."""
    return torch.stack([prompt.noise() for prompt in prompts])
