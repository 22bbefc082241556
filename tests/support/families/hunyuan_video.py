"""HunyuanVideo's parity rows.

Stock ComfyUI itself fails with odd heights and widths of the video, with a mask or a reference latent when the batch has more than one video,
with a mask that is shorter than the text, without pooled text, and with a guiding frame and guidance when the batch has more than two videos:
no row has these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from tutti.backend.models.families.hunyuan_video import HunyuanVideoGeometry

from tests.support.calls import DrawnCall, draw
from tests.support.family_parity import FamilyRow

TEXT_WIDTH: Final = 64
POOLED_WIDTH: Final = 768
"""ComfyUI takes no other from a checkpoint."""
SMALL: Final = {
    "hidden": 256,
    "depth": 2,
    "depth_single": 2,
    "out_channels": 16,
    "context_dim": TEXT_WIDTH,
    "pooled_dim": POOLED_WIDTH,
}


def video(
    *,
    channels: int = 16,
    size: tuple[int, int, int] = (3, 8, 6),
    tokens: int = 13,
    batch: int = 1,
    pooled: int = POOLED_WIDTH,
    guidance: float | None = 6.0,
    guiding: float | None = None,
    reference: tuple[int, int, int] | None = None,
    mask: tuple[int, ...] | None = None,
) -> DrawnCall:
    """``guiding`` and ``reference``: the two ways of image to video that need no channels; ``mask``: which text tokens count."""
    conditioning: dict[str, tuple[int, ...]] = {"context": (batch, tokens, TEXT_WIDTH), "pooled": (batch, pooled)}
    if reference:
        conditioning["ref_latent"] = (batch, channels, *reference)
    numbers = {"guidance": guidance, "guiding_frame_index": guiding}
    given = {name: value for name, value in numbers.items() if value is not None}
    call = draw((batch, channels, *size), conditioning, numbers=given, multiplier=1000.0)
    if mask is None:
        return call
    return replace(call, conditioning={**call.conditioning, "attention_mask": torch.tensor(mask).repeat(batch, 1)})


TEXT_TO_VIDEO: Final = {
    "even": video(),
    "odd token grid": video(size=(3, 10, 6), tokens=11),
    "one frame, one token": video(size=(1, 2, 2), tokens=1),
    "five frames, batch 2": video(size=(5, 6, 4), batch=2),
    "long text": video(tokens=300),
    "without guidance": video(guidance=None),
    "wider pooled text": video(pooled=1024),
    "padded text": video(mask=(1,) * 9 + (0,) * 4),
    "text with holes": video(mask=(0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0)),
    "one token of text left": video(mask=(0,) * 7 + (1,) + (0,) * 5),
    "mask that excludes nothing": video(mask=(1,) * 13),
}
# A frame of the default size has 12 tokens.
IMAGE_TO_VIDEO: Final = {
    "guiding frame shorter than the text": video(guiding=0.0),
    "guiding frame longer than the text": video(guiding=0.0, tokens=5),
    "guiding frame of another index, without guidance": video(guiding=7.0, tokens=5, guidance=None),
    "guiding frame, batch 2 of different guidance": video(guiding=3.0, tokens=5, batch=2),
    "guiding frame, text with holes": video(guiding=0.0, tokens=10, mask=(1, 0, 0, 1, 1, 0, 1, 1, 0, 1)),
    "reference": video(reference=(1, 8, 6)),
    "reference of odd size, three frames": video(reference=(3, 5, 7)),
    "reference and guiding frame": video(reference=(1, 4, 6), guiding=0.0, tokens=3),
}

ROWS: Final = (
    FamilyRow(
        name="text to video",
        geometry=HunyuanVideoGeometry(**SMALL, in_channels=16, guidance=True),  # type: ignore[arg-type]
        calls={**TEXT_TO_VIDEO, **IMAGE_TO_VIDEO},
    ),
    FamilyRow(
        name="no guidance input",
        geometry=HunyuanVideoGeometry(**SMALL, in_channels=16, guidance=False),  # type: ignore[arg-type]
        calls={"guidance given, which it does not know": video(), "batch 3": video(batch=3, guiding=2.0)},
    ),
    FamilyRow(
        name="image to video by channels",
        geometry=HunyuanVideoGeometry(**SMALL, in_channels=33, guidance=True),  # type: ignore[arg-type]
        calls={"even": video(channels=33), "batch 2, guiding frame": video(channels=33, batch=2, guiding=0.0)},
    ),
    FamilyRow(
        name="SkyReels, image to video",
        geometry=HunyuanVideoGeometry(**SMALL, in_channels=32, guidance=True),  # type: ignore[arg-type]
        calls={"even": video(channels=32)},
    ),
)
