"""Pictures drawn twice: their distance, and that a pair lies side by side on the sheet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tutti.backend.demo.compare import labelled, psnr_db, psnr_text, side_by_side
from tutti.backend.demo.sheet import GAP, MOST_COLUMNS, draw_sheet
from tutti.benchmarks.quality.metrics import psnr_db as of_the_benchmark


def noise(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 8, 12, 3), dtype=torch.uint8, generator=generator)


def test_the_distance_of_pictures_is_their_psnr() -> None:
    black, grey = torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.full((1, 8, 8, 3), 16, dtype=torch.uint8)
    assert psnr_db(grey, black) == [pytest.approx(20 * math.log10(255 / 16))]
    assert psnr_db(black, grey) == psnr_db(grey, black), "unsigned numbers do not wrap around"
    assert psnr_db(noise(1), noise(1)) == [math.inf] * 3
    assert psnr_db(noise(1), noise(2)) == pytest.approx(of_the_benchmark(noise(1), noise(2)).tolist())


@pytest.mark.parametrize(
    ("values_db", "text"),
    [([40.0, 30.0, 35.04], "PSNR 35.0 dB (median)"), ([math.inf, math.inf, 30.0], "the same pictures, bit for bit")],
)
def test_the_distance_is_told_for_people(values_db: list[float], text: str) -> None:
    assert psnr_text(values_db) == text


def test_a_pair_lies_side_by_side_under_its_names() -> None:
    assert MOST_COLUMNS % 2 == 0, "or a pair would be parted"
    first, second = (torch.full((3, 64, 64, 3), colour, dtype=torch.uint8) for colour in (10, 200))
    captions = labelled(["a", "b", "c"], ("off", "fast"))
    assert captions == ["off: a", "fast: a", "off: b", "fast: b", "off: c", "fast: c"]
    pixels = np.asarray(draw_sheet(side_by_side(first, second), captions))
    row = [int(pixels[GAP + 9, GAP + 9 + column * (256 + GAP), 0]) for column in range(4)]
    assert row == [10, 200, 10, 200]
