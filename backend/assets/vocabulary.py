"""The words that the demo model was taught, and how each is written as a number.

A word's place in :data:`WORDS` is its place in the model's input: the shipped weights depend on the order.
"""

from __future__ import annotations

from typing import Final

SIZES: Final = ("small", "medium", "large")
TEXTURES: Final = ("plain", "striped", "dotted")
COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES: Final = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
ROWS: Final = ("top", "bottom")
COLUMNS: Final = ("left", "right")
CENTER: Final = "center"
GREY: Final = "grey"
"""A colour of backgrounds only."""
BACKGROUNDS: Final = ("white", "black", GREY, "red", "yellow", "green", "blue")

WORDS: Final = (*SIZES, *TEXTURES, *COLOURS, GREY, *SHAPES, *ROWS, *COLUMNS, CENTER)

SYNONYMS: Final = {
    "gray": "grey",
    "violet": "purple",
    "big": "large",
    "huge": "large",
    "tiny": "small",
    "little": "small",
    "disc": "circle",
    "disk": "circle",
    "rhombus": "diamond",
    "cube": "square",
    "centre": "center",
    "middle": "center",
    "upper": "top",
    "lower": "bottom",
    "solid": "plain",
    "stripy": "striped",
    "spotted": "dotted",
}
"""Other words for the same."""

IGNORED: Final = frozenset(
    {
        "a", "an", "the", "at", "in", "on", "of", "to", "is", "there", "and", "with", "it", "its", "side", "corner", "background", "picture", "image",
        "one", "shape",
    }
)  # fmt: skip
"""Words that may stand in a prompt and mean nothing by themselves."""
