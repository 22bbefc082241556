"""Wan's parity rows."""

from __future__ import annotations

from typing import Final

from tutti.backend.models.families.wan import WanGeometry

from tests.support.calls import DrawnCall, draw
from tests.support.family_parity import FamilyRow

TEXT_WIDTH: Final = 4096
"""ComfyUI takes no other from a checkpoint."""
SMALL: Final = {"hidden": 256, "depth": 2, "ffn_dim": 384, "text_dim": TEXT_WIDTH}


def video(
    *,
    channels: int = 16,
    size: tuple[int, int, int] = (3, 8, 6),
    tokens: int = 13,
    batch: int = 1,
    image_tokens: int = 0,
    frames: bool = False,
) -> DrawnCall:
    conditioning = {"context": (batch, tokens, TEXT_WIDTH)}
    if image_tokens:
        conditioning["clip_features"] = (batch, image_tokens, 1280)
    return draw((batch, channels, *size), conditioning, multiplier=1000.0, frames=frames)


TEXT_TO_VIDEO: Final = {
    "even": video(),
    "odd sizes": video(size=(3, 7, 5)),
    "one frame, one token": video(size=(1, 1, 1), tokens=1),
    "two frames, batch 2": video(size=(2, 6, 4), batch=2),
    "long text": video(tokens=600),
}
IMAGE_TO_VIDEO: Final = {
    "with CLIP vision": video(channels=36, image_tokens=257),
    "with CLIP vision, odd sizes, batch 2": video(channels=36, image_tokens=257, size=(2, 5, 7), batch=2),
    "without CLIP vision": video(channels=36),
    "with CLIP vision, long text": video(channels=36, image_tokens=257, tokens=530),
}

ROWS: Final = (
    FamilyRow(
        name="text to video",
        geometry=WanGeometry(**SMALL, in_channels=16, out_channels=16, image_dim=None, image_positions=None),  # type: ignore[arg-type]
        calls=TEXT_TO_VIDEO,
    ),
    FamilyRow(
        name="image to video",
        geometry=WanGeometry(**SMALL, in_channels=36, out_channels=16, image_dim=1280, image_positions=None),  # type: ignore[arg-type]
        calls=IMAGE_TO_VIDEO,
    ),
    FamilyRow(
        name="first and last frame",
        geometry=WanGeometry(**SMALL, in_channels=36, out_channels=16, image_dim=1280, image_positions=514),  # type: ignore[arg-type]
        calls={"two images": video(channels=36, image_tokens=514), "one image": video(channels=36, image_tokens=257)},
    ),
    FamilyRow(
        name="2.2, image to video without vision",
        geometry=WanGeometry(**SMALL, in_channels=36, out_channels=16, image_dim=None, image_positions=None),  # type: ignore[arg-type]
        calls={
            "even": video(channels=36),
            "vision given, which it does not know": video(channels=36, image_tokens=257),
        },
    ),
    FamilyRow(
        name="2.2, 5B",
        geometry=WanGeometry(**SMALL, in_channels=48, out_channels=48, image_dim=None, image_positions=None),  # type: ignore[arg-type]
        calls={
            "one timestep": video(channels=48),
            "a timestep per frame": video(channels=48, frames=True),
            "a timestep per frame, odd sizes, batch 2": video(channels=48, frames=True, size=(3, 5, 7), batch=2),
        },
    ),
)
