"""The same prompts under every setting as one PNG for people: a row for each prompt, a column for each setting."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw
from torch import Tensor

from .judgement import Shown
from .prompts import SIDE, Prompt

ROWS: Final = 16
_GAP: Final = 8
_TEXT_WIDTH: Final = 220
_CHARACTERS: Final = 34
_HEADING: Final = 24
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_KEPT, _MISSED = (40, 150, 70), (205, 45, 45)


def write_grid(
    path: Path, prompts: Sequence[Prompt], drawn: Tensor, settings: Sequence[Shown], rows: int = ROWS
) -> None:
    """Write the first ``rows`` prompts: caption, drawn scene, and each setting's picture in a frame that says whether the prompt was kept.

    ``drawn``: what the captions were made from, uint8 ``[N, H, W, 3]``.
    """
    rows = min(rows, len(prompts))
    cell = SIDE + 2 * _GAP
    sheet = Image.new("RGB", (_TEXT_WIDTH + cell * (1 + len(settings)), _HEADING + cell * rows), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(["drawn", *(shown.name for shown in settings)]):
        pen.text((_TEXT_WIDTH + column * cell + _GAP, _GAP), title, fill=_INK)
    for row in range(rows):
        top = _HEADING + row * cell + _GAP
        pen.multiline_text((_GAP, top), textwrap.fill(prompts[row].text, _CHARACTERS), fill=_INK)
        sheet.paste(Image.fromarray(drawn[row].numpy()), (_TEXT_WIDTH + _GAP, top))
        for column, shown in enumerate(settings, start=1):
            left = _TEXT_WIDTH + column * cell + _GAP
            frame = (left - 3, top - 3, left + SIDE + 2, top + SIDE + 2)
            pen.rectangle(frame, outline=_KEPT if shown.kept[row] else _MISSED, width=2)
            sheet.paste(Image.fromarray(shown.pictures[row].numpy()), (left, top))
    sheet.save(path)
