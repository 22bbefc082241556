"""The training set: scenes drawn once, encoded once, kept on disk as latents with their captions."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...backend.demo.terminal import Terminal
from .autoencoder import to_input
from .scenes import draw, random_scene

_BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class Latents:
    """Scenes of one size."""

    latents: Tensor
    """bfloat16 ``[N, 16, height / 8, width / 8]``."""
    captions: tuple[str, ...]


@torch.no_grad()
def make_latents(autoencoder: Any, folder: Path, *, width: int, height: int, count: int) -> Latents:
    """The latents of ``count`` scenes; those that are in ``folder`` already are read."""
    path = folder / f"latents_{width}x{height}_{count}.safetensors"
    if not path.exists():
        _write(autoencoder, path, width, height, count)
    with safe_open(path, framework="pt") as file:
        return Latents(file.get_tensor("latents"), tuple(json.loads(file.metadata()["captions"])))


def _write(autoencoder: Any, path: Path, width: int, height: int, count: int) -> None:
    terminal, dice = Terminal(), random.Random(f"scenes {width} {height}")
    scenes = [random_scene(dice) for _ in range(count)]
    parts = []
    for first in range(0, count, _BATCH):
        chosen = scenes[first : first + _BATCH]
        pictures = torch.stack([torch.from_numpy(draw(scene, width, height).copy()) for scene in chosen])
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(autoencoder.encoder(to_input(pictures)).to(torch.bfloat16).contiguous())
        terminal.bar(f"encode scenes, {width} x {height}", first + len(chosen), count)
    captions = json.dumps([scene.caption for scene in scenes])
    temporary = path.with_suffix(".part")
    save_file({"latents": torch.cat(parts)}, temporary, metadata={"captions": captions})
    temporary.replace(path)
    terminal.line(f"  ✓ {count} scenes of {width} x {height} encoded")
