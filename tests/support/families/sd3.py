"""Stable Diffusion 3's parity rows.

Left out: pictures larger than the table of positions, which stock ComfyUI's network cannot run either (we refuse them beforehand), and rows of
unequal text, which ComfyUI runs one by one (this family has no text mask).
"""

from __future__ import annotations

from typing import Final

from tutti.backend.models.families.sd3 import Sd3Geometry

from tests.support.calls import DrawnCall, draw
from tests.support.family_parity import FamilyRow

CONTEXT_WIDTH: Final = 64
POOLED_WIDTH: Final = 32


def small(*, hidden: int = 128, dual: tuple[int, ...] = (), qk_norm: bool = True) -> Sd3Geometry:
    """The table has an odd side: what is cropped from it lies off its middle for half of the sizes."""
    return Sd3Geometry(
        hidden=hidden,
        dual=dual,
        in_channels=16,
        out_channels=16,
        context_dim=CONTEXT_WIDTH,
        pooled_dim=POOLED_WIDTH,
        table_side=9,
        qk_norm=qk_norm,
    )


def picture(*, size: tuple[int, int] = (8, 6), tokens: int = 13, batch: int = 1, pooled: bool = True) -> DrawnCall:
    conditioning: dict[str, tuple[int, ...]] = {"context": (batch, tokens, CONTEXT_WIDTH)}
    if pooled:
        conditioning["pooled"] = (batch, POOLED_WIDTH)
    return draw((batch, 16, *size), conditioning, multiplier=1000.0)


def common() -> dict[str, DrawnCall]:
    """Drawn anew for every row: a file of calls holds each tensor once."""
    return {
        "even": picture(),
        "odd sizes, batch 2": picture(size=(7, 11), batch=2),
        "one token": picture(size=(1, 1), tokens=1),
        "as large as the table": picture(size=(18, 17)),
    }


ROWS: Final = (
    FamilyRow(
        name="3",
        geometry=small(qk_norm=False),
        calls={
            **common(),
            "batch 3": picture(batch=3, size=(4, 10)),
            "long text": picture(tokens=600),
            "no pooled text": picture(pooled=False),
        },
    ),
    FamilyRow(
        name="3.5 large",
        geometry=small(),
        calls=common(),
    ),
    FamilyRow(
        name="3.5 medium",
        geometry=small(hidden=256, dual=(0, 1)),
        calls={
            **common(),
            "text of a single token": picture(tokens=1),
            "long text, batch 2": picture(tokens=154, batch=2),
        },
    ),
    FamilyRow(
        name="dual attention in every block, the last one included",
        geometry=small(dual=(0, 1), qk_norm=False),
        calls={"odd sizes": picture(size=(5, 9))},
    ),
)
