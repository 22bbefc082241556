"""One small checkpoint of every family in real ComfyUI servers, and what its workflows are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tutti.backend.models.tiny import write_tiny

from tests.support import families
from tests.support.families import flux2, hunyuan_video, qwen_image, sd3, wan, z_image


@dataclass(frozen=True, kw_only=True)
class Served:
    """A family's checkpoint and the sizes of its inputs."""

    family: str
    mode: str = ""
    """Of a checkpoint that has one of its own: ``image to video``."""
    vision_tokens: int = 0
    """What a CLIP vision model gives, for an image to video that takes it."""
    text_width: int
    latent: tuple[int, ...]
    """Channels, frames of a video, height, width."""
    pooled_width: int = 0
    masks_alone: bool = False
    """Whether ComfyUI has a way with masks of its own for this model: then a masked loop runs there."""
    text_mask: bool = False
    """Whether the network needs one."""
    row: int = 0
    """Which of the family's parity rows."""

    @property
    def file(self) -> str:
        """Its name in the loaders' lists."""
        return f"family-{self.family}{self.mode.replace(' ', '-')}.safetensors"

    @property
    def is_video(self) -> bool:
        """Whether it makes films."""
        return len(self.latent) == 4

    def write(self, folder: Path) -> None:
        """Write the checkpoint."""
        family, rows = families.ROWS[self.family]
        row = rows[self.row]
        write_tiny(folder / self.file, family, row.geometry, seed=3, metadata=row.metadata)


SERVED: Final[Mapping[str, Served]] = {
    served.family: served
    for served in (
        Served(family="flux2", text_width=flux2.DEV_WIDTH, latent=(128, 8, 8)),
        Served(family="wan", text_width=wan.TEXT_WIDTH, latent=(16, 3, 8, 8)),
        Served(family="sd3", text_width=sd3.CONTEXT_WIDTH, pooled_width=sd3.POOLED_WIDTH, latent=(16, 16, 16)),
        Served(family="z_image", text_width=z_image.CONTEXT_WIDTH, latent=(16, 16, 16)),
        Served(family="qwen_image", text_width=qwen_image.TEXT_WIDTH, latent=(16, 1, 16, 16)),
        Served(family="ltx_video", text_width=4096, latent=(128, 3, 4, 4), masks_alone=True, text_mask=True),
        Served(
            family="hunyuan_video", text_width=hunyuan_video.TEXT_WIDTH, pooled_width=hunyuan_video.POOLED_WIDTH, latent=(16, 3, 8, 8), masks_alone=True,
        ),
    )
}  # fmt: skip
EDITING: Final[Mapping[str, Served]] = {
    "flux2": SERVED["flux2"],
    "qwen_image": SERVED["qwen_image"],
    "wan": Served(
        family="wan", mode="image to video", row=1, text_width=wan.TEXT_WIDTH, latent=(16, 3, 8, 8), vision_tokens=257
    ),
    "hunyuan_video": Served(
        family="hunyuan_video", mode="image to video", row=2, text_width=hunyuan_video.TEXT_WIDTH, pooled_width=hunyuan_video.POOLED_WIDTH,
        latent=(16, 3, 8, 8), masks_alone=True,
    ),
}  # fmt: skip
"""Whose conditioning holds pictures: references, or a video's start."""
SMALL_DETECTION: Final = {
    "TEST_UNET_CONFIG": json.dumps(
        {
            "transformer_blocks.0.img_mod.1.weight": qwen_image.SMALL_DETECTION,
            "cap_embedder.1.weight": {**z_image.DETECTED, "test_class": "ZImage"},
        }
    )
}
"""For the servers' environment: see ``fixture_nodes/small_detection.py``."""
