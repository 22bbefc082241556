"""A contact sheet: pictures in a grid, each with its prompt below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MOST_COLUMNS: Final = 4
SHOWN_SIDE: Final = 240
"""Pictures with a shorter side below this are shown enlarged, by a whole number."""
GAP: Final = 16
FONT_SIZE: Final = 15
LINE_HEIGHT: Final = 19
MOST_LINES: Final = 4
BACKGROUND: Final = (24, 25, 31)
INK: Final = (222, 224, 232)
EMPTY: Final = "(no prompt)"


def draw_sheet(pictures_BHWC: Tensor, captions: Sequence[str]) -> Image.Image:
    """uint8 pictures of one size, and as many captions."""
    count, height, width, _ = pictures_BHWC.shape
    factor = max(1, math.ceil(SHOWN_SIDE / min(width, height)))
    width, height = width * factor, height * factor
    font = ImageFont.load_default(size=FONT_SIZE)
    texts = [wrap(" ".join(caption.split()) or EMPTY, width, font) for caption in captions]
    caption_height = GAP // 2 + LINE_HEIGHT * max(map(len, texts))
    columns = min(count, MOST_COLUMNS)
    rows = math.ceil(count / columns)
    size = GAP + columns * (width + GAP), GAP + rows * (height + caption_height + GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for index, (picture_HWC, lines) in enumerate(zip(pictures_BHWC, texts, strict=True)):
        x = GAP + index % columns * (width + GAP)
        y = GAP + index // columns * (height + caption_height + GAP)
        picture = Image.fromarray(picture_HWC.numpy())
        sheet.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (x, y))
        for number, line in enumerate(lines):
            pen.text((x, y + height + GAP // 2 + number * LINE_HEIGHT), line, fill=INK, font=font)
    return sheet


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """At most :data:`MOST_LINES` lines that fit ``width`` pixels; what has no room ends in an ellipsis."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = len(lines) > MOST_LINES
    lines = [_shortened(line, width, font) for line in lines[:MOST_LINES]]
    if cut:
        lines[-1] = _shortened(f"{lines[-1]}…", width, font)
    return lines


def _shortened(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(line) <= width:
        return line
    kept = line.rstrip("…")
    while kept and font.getlength(f"{kept}…") > width:
        kept = kept[:-1]
    return f"{kept}…"
