"""FLUX.2's parity rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from tutti.backend.models.families.flux2 import Flux2Geometry

from tests.support.calls import DrawnCall, draw
from tests.support.family_parity import FamilyRow

DEV_WIDTH: Final = 96
KLEIN_WIDTH: Final = 64
SMALL: Final[dict[str, Any]] = {"hidden": 256, "depth": 2, "depth_single": 2, "in_channels": 128, "out_channels": 128}


def picture(
    *,
    size: tuple[int, int] = (8, 6),
    tokens: int = 13,
    batch: int = 1,
    width: int = DEV_WIDTH,
    guidance: float | None = 3.5,
    references: Sequence[tuple[int, int]] = (),
    method: str | None = None,
    channels: int = 128,
) -> DrawnCall:
    conditioning = {"context": (batch, tokens, width)}
    latents = {f"ref_latents.{number}": (1, channels, *reference) for number, reference in enumerate(references)}
    return draw(
        (batch, channels, *size),
        {**conditioning, **latents},
        numbers=None if guidance is None else {"guidance": guidance},
        options=None if method is None else {"ref_latents_method": method},
    )


def padded_on_the_left(call: DrawnCall, valid: int) -> DrawnCall:
    """As ComfyUI's ``extra_conds`` pads text: zeros before it, which the network attends to."""
    context = call.conditioning["context"].clone()
    context[:, :-valid] = 0
    return replace(call, conditioning={**call.conditioning, "context": context})


TWO: Final = ((6, 4), (5, 9))
"""Two references of other sizes than the picture's."""
DEV: Final = {
    "even": picture(),
    "odd sizes": picture(size=(7, 5)),
    "one token": picture(size=(1, 1), tokens=1),
    "batch 2": picture(size=(6, 4), batch=2),
    "without guidance": picture(guidance=None),
    "text padded on the left to 512": padded_on_the_left(picture(tokens=512), 21),
    "long text": picture(tokens=601),
    "one reference": picture(references=((8, 6),)),
    "one reference for two pictures": picture(references=((4, 6),), batch=2),
    "two references": picture(references=TWO),
    "two references, index": picture(references=TWO, method="index"),
    "two references, offset": picture(references=TWO, method="offset"),
    "two references, uxo": picture(references=TWO, method="uxo", size=(7, 5)),
    # Stock ComfyUI cannot run this one with guidance and a batch: it adds one vector per picture to two.
    "two references at timestep 0": picture(references=TWO, method="index_timestep_zero"),
    "a method without references": picture(method="index_timestep_zero"),
}
KLEIN: Final = {
    "even": picture(width=KLEIN_WIDTH, guidance=None),
    "odd sizes, batch 2, guidance given, which it does not know": picture(width=KLEIN_WIDTH, size=(7, 5), batch=2),
    "two references, batch 2": picture(width=KLEIN_WIDTH, references=TWO, batch=2),
    "two references at timestep 0, batch 2": picture(
        width=KLEIN_WIDTH, references=TWO, batch=2, method="index_timestep_zero"
    ),
    "one reference at timestep 0, odd sizes": picture(
        width=KLEIN_WIDTH, references=((3, 5),), size=(5, 5), tokens=7, method="index_timestep_zero"
    ),
}

ROWS: Final = (
    FamilyRow(name="dev", geometry=Flux2Geometry(**SMALL, context_dim=DEV_WIDTH, guidance=True), calls=DEV),
    FamilyRow(name="klein", geometry=Flux2Geometry(**SMALL, context_dim=KLEIN_WIDTH, guidance=False), calls=KLEIN),
    FamilyRow(
        name="with concatenated channels",
        geometry=Flux2Geometry(**{**SMALL, "in_channels": 256}, context_dim=DEV_WIDTH, guidance=True),
        calls={"odd sizes": picture(channels=256, size=(5, 7))},
    ),
)
