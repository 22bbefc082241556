"""Z-Image's parity rows."""

from __future__ import annotations

from typing import Final

from tutti.backend.models.families.z_image import ZImageGeometry

from tests.support.calls import DrawnCall, draw
from tests.support.family_parity import FamilyRow

CONTEXT_WIDTH: Final = 40
DETECTED: Final = {
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
"""What ComfyUI's detection gives a Z-Image, which it knows by a width of 3840, but for the 30 heads of that width."""


def picture(
    *,
    size: tuple[int, int] = (16, 12),
    tokens: int = 13,
    batch: int = 1,
    valid: tuple[int, ...] = (),
    num_tokens: float | None = None,
) -> DrawnCall:
    """``valid``: text tokens that the mask of each picture lets through. Stock ComfyUI always gives a number of tokens."""
    return draw(
        (batch, 16, *size),
        {"context": (batch, tokens, CONTEXT_WIDTH)},
        valid={"attention_mask": (tokens, valid)} if valid else None,
        options={"num_tokens": tokens if num_tokens is None else num_tokens},
    )


ROWS: Final = (
    FamilyRow(
        name="text to image",
        geometry=ZImageGeometry(
            hidden=256, depth=2, depth_refiner=2, ffn_dim=768, time_dim=256, in_channels=16, context_dim=CONTEXT_WIDTH
        ),
        calls={
            "48 patches, filled up to 64": picture(),
            "64 patches, 32 text tokens, nothing to fill up": picture(size=(16, 16), tokens=32),
            "odd sizes": picture(size=(11, 9)),
            "odd sizes, batch 2": picture(size=(7, 13), batch=2),
            "one patch, one token": picture(size=(1, 1), tokens=1),
            "batch 3, long text": picture(size=(10, 8), tokens=300, batch=3),
            "text longer than diffusers' tables": picture(tokens=1100),
            "a mask of unequal lengths, which the network does not read": picture(
                batch=2, tokens=40, valid=(40, 17), num_tokens=57.0
            ),
        },
        unet_config=DETECTED,
    ),
)
