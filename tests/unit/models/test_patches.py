"""Patches, positions, and where reference images stand."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.models.patches import Placement, grid_positions, pack, place_references, unpack

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(2, 2), (8, 6), (11, 9), (13, 7), (1, 1), (1, 6)])
def test_unpacking_gives_back_what_was_packed(size: tuple[int, int]) -> None:
    x = torch.arange(2 * 3 * size[0] * size[1], dtype=torch.float32).view(2, 3, *size)
    tokens = pack(x)
    assert tokens.shape == (2, -(-size[0] // 2) * -(-size[1] // 2), 12)
    assert unpack(tokens, *size).equal(x)


def test_a_token_is_a_patch_channel_by_channel() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert pack(x)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    both = torch.cat((x, x + 100), 1)
    assert pack(both)[0, 0].tolist() == [0, 1, 4, 5, 100, 101, 104, 105]


def test_odd_sizes_wrap_around() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert pack(x)[0].tolist() == [[0, 1, 3, 4], [2, 0, 5, 3], [6, 7, 0, 1], [8, 6, 2, 0]]


def test_positions_are_index_row_and_column() -> None:
    positions = grid_positions(4, 5, Placement(index=2, row=10, column=20), CPU)
    assert positions.tolist() == [[2, 10, 20], [2, 10, 21], [2, 10, 22], [2, 11, 20], [2, 11, 21], [2, 11, 22]]


def test_offset_puts_references_where_the_whole_stays_smaller() -> None:
    assert place_references([(16, 16)], "offset", (16, 16)) == [Placement(1, 0, 0)]
    # A square first: the next one is no taller than wide, so it goes below.
    assert place_references([(16, 16), (16, 16)], "offset", (16, 16)) == [Placement(1, 0, 0), Placement(1, 8, 0)]
    # A tall one beside what is there, odd sizes rounded up.
    assert place_references([(9, 5), (21, 5)], "offset", (16, 16)) == [Placement(1, 0, 0), Placement(1, 0, 3)]


def test_index_gives_each_reference_an_index_of_its_own() -> None:
    assert place_references([(16, 16), (8, 8)], "index", (16, 16)) == [Placement(1, 0, 0), Placement(2, 0, 0)]
    apart = place_references([(16, 16), (8, 8)], "index", (16, 16), index_step=10)
    assert apart == [Placement(10, 0, 0), Placement(20, 0, 0)]


def test_uxo_continues_the_diagonal_of_the_picture() -> None:
    assert place_references([(15, 12), (8, 8)], "uxo", (11, 9)) == [Placement(0, 6, 5), Placement(0, 14, 11)]


def test_a_patch_of_one_pixel_places_pixels() -> None:
    assert place_references([(9, 5), (21, 5)], "offset", (16, 16), patch=1) == [Placement(1, 0, 0), Placement(1, 0, 5)]
    assert place_references([(15, 12), (8, 8)], "uxo", (11, 9), patch=1) == [Placement(0, 11, 9), Placement(0, 26, 21)]
    assert grid_positions(1, 3, Placement(0, 4, 0), CPU, patch=1).tolist() == [[0, 4, 0], [0, 4, 1], [0, 4, 2]]
