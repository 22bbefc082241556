"""Plain text as the demo model's conditioning: which words it knows, and which object each belongs to.

    "a large red circle at the top left and a small blue star on a grey background"
     └─ part 0 ───────────────────────────┘   └─ part 1 ──┘     └─ background ──┘

A token is a known word as a text encoder would give it: which word, which other words its part of the sentence has, and which part it is.
So "circle" in "a red circle at the top" is a red circle at the top wherever it stands. FLUX.1's pooled vector says which words are there at
all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .vocabulary import COLOURS, IGNORED, SHAPES, SYNONYMS, WORDS

CONTEXT_WIDTH: Final = 64
"""Numbers of one token: which word (28), which words its part has (28), which part (8)."""
POOLED_WIDTH: Final = 64
TOKENS: Final = 20
"""Tokens of every prompt; those behind the last word are zeros."""
PARTS: Final = 3
"""Objects that one prompt may have: the model never saw more."""

_PART_FROM: Final = 56
_BACKGROUND_PART: Final = 7
_ENDS_PART: Final = re.compile(r"[,;.&+]|\band\b|\bwith\b")
_SAYS_WHAT: Final = frozenset((*SHAPES, *COLOURS))
"""What begins an object; a piece with none of these goes on about the one before."""
_BACKGROUND: Final = re.compile(
    r"\b(?:on|over|against|before)\s+(?:an?\s+|the\s+)?(\w+)\s+background\b|\b(\w+)\s+background\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt as the model sees it."""

    words: tuple[tuple[str, int], ...]
    """Known words, each with its part: 0, 1, 2, or 7 for the background."""
    unknown: tuple[str, ...]
    """Words that the model was never taught, in order: they change nothing."""
    left_out: tuple[str, ...]
    """Known words for which there was no room."""

    def context(self) -> list[list[float]]:
        """``[TOKENS, CONTEXT_WIDTH]``."""
        rows = [[0.0] * CONTEXT_WIDTH for _ in range(TOKENS)]
        for row, (word, part) in zip(rows, self.words, strict=False):
            row[WORDS.index(word)] = row[_PART_FROM + part] = 1.0
            for other, its_part in self.words:
                if its_part == part:
                    row[len(WORDS) + WORDS.index(other)] = 1.0
        return rows

    def pooled(self) -> list[float]:
        """``[POOLED_WIDTH]``: 1 for every word that is there; then, how many objects, as 1 at one of the last places."""
        row = [0.0] * POOLED_WIDTH
        for word, _ in self.words:
            row[WORDS.index(word)] = 1.0
        objects = len({part for _, part in self.words if part != _BACKGROUND_PART})
        row[_PART_FROM + objects] = float(bool(self.words))
        return row


def parse(text: str) -> Prompt:
    """Read a prompt. Any text is one: what is not understood is listed, never refused."""
    rest, backgrounds = _take_background(text.lower())
    unknown: list[str] = []
    objects: list[list[str]] = []
    for piece in _ENDS_PART.split(rest):
        known = _known(piece, unknown)
        if objects and _SAYS_WHAT.isdisjoint(known):
            objects[-1] += known  # "a red circle, top left"
        elif known:
            objects.append(known)
    words = [(word, part) for part, known in enumerate(objects[:PARTS]) for word in known]
    words += [(word, _BACKGROUND_PART) for found in backgrounds for word in _known(found, unknown)]
    left_out = [word for known in objects[PARTS:] for word in known] + [word for word, _ in words[TOKENS:]]
    return Prompt(words=tuple(words[:TOKENS]), unknown=tuple(unknown), left_out=tuple(left_out))


def _take_background(text: str) -> tuple[str, list[str]]:
    backgrounds = [first or second for first, second in _BACKGROUND.findall(text)]
    return _BACKGROUND.sub(" , ", text), backgrounds


def _known(text: str, unknown: list[str]) -> list[str]:
    known = []
    for found in re.findall(r"[^\W\d_]+", text):
        word = SYNONYMS.get(found, found)
        if word in WORDS:
            known.append(word)
        elif word.endswith("s") and word[:-1] in WORDS:
            known.append(word[:-1])
        elif word not in IGNORED:
            unknown.append(found)
    return known
