"""The contact sheet: where the pictures lie, and captions that fit below them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ImageFont
from tutti.backend.demo.sheet import BACKGROUND, FONT_SIZE, GAP, MOST_LINES, draw_sheet, wrap


def plain(count: int, height: int = 128, width: int = 128) -> torch.Tensor:
    """Pictures of one colour each: their number in red."""
    pictures = torch.zeros(count, height, width, 3, dtype=torch.uint8)
    pictures[..., 0] = torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None] * 10
    return pictures


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 4, 1), (5, 4, 2), (12, 4, 3)])
def test_every_picture_is_on_the_sheet_in_order(count: int, columns: int, rows: int) -> None:
    sheet = draw_sheet(plain(count), ["red circle"] * count)
    assert sheet.width == GAP + columns * (256 + GAP), "small pictures are shown at twice their size"
    pixels = np.asarray(sheet)
    row_height = (sheet.height - GAP) // rows
    for index in range(count):
        x, y = GAP + index % columns * (256 + GAP), GAP + index // columns * row_height
        assert pixels[y + 128, x + 128].tolist() == [10 * (index + 1), 0, 0]
        below = pixels[y + 256 : y + row_height - GAP, x : x + 256]
        assert (below != BACKGROUND).any(), "its caption"


def test_pictures_that_are_large_enough_keep_their_size() -> None:
    sheet = draw_sheet(plain(2, height=256, width=272), ["a", "b"])
    assert sheet.width == GAP + 2 * (272 + GAP)


def test_a_caption_is_wrapped_to_the_width_and_cut_after_a_few_lines() -> None:
    font = ImageFont.load_default(size=FONT_SIZE)
    lines = wrap("a large red circle at the top left and " * 20, 256, font)
    assert len(lines) == MOST_LINES
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 256 for line in lines)
    assert " ".join(wrap("a red circle on a white background", 100, font)) == "a red circle on a white background"


def test_one_endless_word_is_cut() -> None:
    font = ImageFont.load_default(size=FONT_SIZE)
    (line,) = wrap("x" * 500, 256, font)
    assert line.endswith("x…")
    assert font.getlength(line) <= 256


def test_a_caption_without_text_says_so() -> None:
    blank = draw_sheet(plain(1), [" \n "])
    assert np.array_equal(np.asarray(blank), np.asarray(draw_sheet(plain(1), ["(no prompt)"])))
