"""Texts of parts in fields of bounded length: they can be taken apart again, and what was cut shows."""

from __future__ import annotations

import pytest
from tutti.backend.wire.texts import joined, parts_of, shortened, size_text


@pytest.mark.parametrize("parts", [[], ["flash"], ["flash", "cudnn is off: no plan", "漢"]], ids=len)
def test_what_is_joined_is_taken_apart_again(parts: list[str]) -> None:
    assert parts_of(joined(parts, 512)) == parts


def test_a_part_cannot_pass_for_two() -> None:
    assert parts_of(joined(["a; b", "c"], 512)) == ["a, b", "c"]


@pytest.mark.parametrize("length", [4, 11, 511])
def test_a_text_that_is_cut_ends_with_an_ellipsis_and_fits(length: int) -> None:
    cut = joined(["x" * 300, "y" * 300], length)
    assert cut.endswith(" …")
    assert len(cut) <= length


def test_a_text_that_just_fits_is_left_alone() -> None:
    assert shortened("x" * 512, 512) == "x" * 512
    assert shortened("x" * 513, 512) == "x" * 510 + " …"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (583_490_000, "583.5 MB"), (2.5e12, "2500.0 GB")],
)
def test_sizes_are_told_for_people(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text
