"""What to tell somebody about the prompt they wrote for the demo model: how it was understood, what has no effect, and which words there are."""

from __future__ import annotations

from typing import Final

from ..errors import BadRequest
from .prompt import PARTS, TOKENS, Prompt, parse
from .vocabulary import BACKGROUNDS, CENTER, COLOURS, COLUMNS, GREY, ROWS, SHAPES, SIZES, TEXTURES

EXAMPLE: Final = "a large red circle at the top left and a small blue star on a grey background"
GUIDANCE: Final = (1.0, 3.0, 5.0)
"""Least, usual and most guidance that the model was taught."""
SIDES: Final = (128, 256)
"""Least and greatest side, in pixels, of the pictures that the model was taught."""
PIXELS_PER_CELL: Final = 8
"""A latent cell stands for 8 x 8 pixels, as in FLUX.1's autoencoder."""
_SHOWN_LETTERS: Final = 80


def read_prompt(text: str) -> Prompt:
    """Parse a prompt. One without any letter is empty: what guidance points away from.

    Raises:
        BadRequest: it has words, and the model knows none of them.
    """
    prompt = parse(text)
    if not prompt.words and any(letter.isalpha() for letter in text):
        shown = "".join(letter if letter.isprintable() else " " for letter in text[:_SHOWN_LETTERS])
        raise BadRequest(f"Use words that the demo model knows, such as '{EXAMPLE}': it knows none of '{shown}'.")
    return prompt


def vocabulary() -> str:
    """Every word, by kind, in one line."""
    kinds = {
        "Sizes": SIZES,
        "Textures": TEXTURES,
        "Colours": COLOURS,
        "Shapes": SHAPES,
        "Places": (*ROWS, *COLUMNS, CENTER),
        "Backgrounds": BACKGROUNDS,
    }
    return " ".join(f"{kind}: {', '.join(words)}." for kind, words in kinds.items())


def understood(prompt: Prompt) -> str:
    """What the model is told: ``large red circle top left | small blue star | grey background``."""
    parts: dict[int, list[str]] = {}
    for word, part in prompt.words:
        parts.setdefault(part, []).append(word)
    objects = [" ".join(words) for part, words in parts.items() if part < PARTS]
    backgrounds = [f"{' '.join(words)} background" for part, words in parts.items() if part >= PARTS]
    return " | ".join(objects + backgrounds) or "no words: an empty prompt"


def warnings(prompt: Prompt) -> list[str]:
    """A sentence for everything that was written and has no effect, or not the one that is meant."""
    found = []
    if prompt.unknown:
        found.append(f"Without effect, because the demo model does not know them: {_listed(prompt.unknown)}.")
    if prompt.left_out:
        found.append(f"Left out, because a prompt has room for {PARTS} objects and {TOKENS} words: {_listed(prompt.left_out)}.")  # fmt: skip
    odd = tuple(word for word, part in prompt.words if part >= PARTS and word not in BACKGROUNDS)
    if odd:
        found.append(f"Never seen as a background, of which there are {', '.join(BACKGROUNDS)}: {_listed(odd)}.")
    if any(word == GREY and part < PARTS for word, part in prompt.words):
        found.append(f"Never seen as an object's colour: {GREY}, which only backgrounds have.")
    return found


def size_warning(width: int, height: int) -> str:
    """A sentence about a size, in pixels, that the model was not taught; else empty."""
    low, high = SIDES
    if all(low <= side <= high for side in (width, height)):
        return ""
    return f"The demo model was taught pictures with sides of {low} to {high} pixels, and {width} x {height} will look worse."


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(words))
