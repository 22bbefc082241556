"""Qwen-Image's parity rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tutti.backend.models.families.qwen_image import QwenImageGeometry

from tests.support.calls import DrawnCall, draw
from tests.support.family_parity import FamilyRow

TEXT_WIDTH: Final = 64
HIDDEN: Final = 256
SMALL_DETECTION: Final[Mapping[str, object]] = {"num_attention_heads": HIDDEN // 128, "joint_attention_dim": TEXT_WIDTH}
"""ComfyUI's own says 24 heads and text of 3584, whatever the file has."""


def picture(
    *,
    size: tuple[int, int, int] = (1, 8, 6),
    tokens: int = 13,
    batch: int = 1,
    references: Sequence[tuple[int, ...]] = (),
    method: str = "",
    valid: tuple[int, ...] = (),
) -> DrawnCall:
    """``references``: frames, height and width of each, with a batch of its own before them if there are four numbers. ``valid``: text tokens
    of each row that count."""
    conditioning = {"context": (batch, tokens, TEXT_WIDTH)}
    for number, reference in enumerate(references):
        *rows, frames, height, width = reference
        conditioning[f"ref_latents.{number}"] = (rows[0] if rows else 1, 16, frames, height, width)
    return draw(
        (batch, 16, *size),
        conditioning,
        valid={"attention_mask": (tokens, valid)} if valid else None,
        options={"ref_latents_method": method} if method else None,
    )


def with_holes(call: DrawnCall) -> DrawnCall:
    """The same with every third text token masked, the first one included."""
    mask = call.conditioning["attention_mask"].clone()
    mask[:, ::3] = 0
    return DrawnCall(
        x=call.x,
        timestep=call.timestep,
        conditioning={**call.conditioning, "attention_mask": mask},
        options=call.options,
    )


ODD: Final = ((1, 7, 5), (1, 6, 9))
LARGER: Final = ((1, 20, 6), (1, 4, 18))

TEXT_TO_IMAGE: Final = {
    "even": picture(),
    "7x7 tokens": picture(size=(1, 13, 13)),
    "odd sizes": picture(size=(1, 7, 5)),
    "one token": picture(size=(1, 1, 1), tokens=1),
    "batch 2": picture(size=(1, 9, 6), batch=2),
    "long text": picture(tokens=600),
    "unequal text": picture(batch=3, tokens=17, valid=(17, 5, 11)),
    "holes in the text": with_holes(picture(batch=2, tokens=17, valid=(17, 16))),
    "frames": picture(size=(3, 7, 6)),
}
EDIT: Final = {
    "one reference": picture(references=((1, 8, 6),)),
    "larger references": picture(references=LARGER),
    "odd references, batch 2": picture(batch=2, size=(1, 11, 6), references=ODD),
    "a reference of its own for each row": picture(batch=2, references=((2, 1, 5, 6),)),
    "a reference of several frames": picture(references=((2, 5, 6), (1, 4, 4))),
    "unequal text": picture(batch=2, references=ODD, valid=(13, 6)),
    "index": picture(references=ODD, method="index"),
    "negative index": picture(references=ODD, method="negative_index"),
    "timestep zero": picture(references=ODD, method="index_timestep_zero"),
    "timestep zero, batch 2, unequal text": picture(
        batch=2, references=LARGER, method="index_timestep_zero", valid=(13, 6)
    ),
    "timestep zero without references": picture(method="index_timestep_zero"),
    "offset": picture(references=(*LARGER, *ODD), method="offset"),
    "uxo, which is offset here": picture(references=ODD, method="uxo"),
}
MARKED: Final = {
    "no references": picture(),
    "references": picture(references=ODD),
    "references, batch 2": picture(batch=2, references=LARGER),
    "another method": picture(references=ODD, method="index"),
}
LAYERED: Final = {
    "layers": picture(size=(4, 6, 5)),
    "layers of a reference": picture(size=(3, 6, 5), references=((1, 6, 5),)),
    "layers, timestep zero": picture(size=(3, 6, 5), batch=2, references=ODD, method="index_timestep_zero"),
}


def row(name: str, calls: Mapping[str, DrawnCall], *, depth: int = 2, **kind: bool) -> FamilyRow:
    geometry = QwenImageGeometry(hidden=HIDDEN, depth=depth, context_dim=TEXT_WIDTH, **kind)
    return FamilyRow(name=name, geometry=geometry, calls=calls, unet_config=SMALL_DETECTION)


ROWS: Final = (
    row("text to image", TEXT_TO_IMAGE),
    row("1328 pixels", {"83x83 tokens": picture(size=(1, 166, 166), tokens=20)}, depth=1),
    row("edit", EDIT),
    row("edit, marked for timestep zero", MARKED, marked=True),
    row("layered", LAYERED, layered=True),
    row("layered and marked", {"reference": picture(size=(2, 4, 4), references=ODD)}, layered=True, marked=True),
)
