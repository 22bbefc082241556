"""Drawn scenes and their captions: the demo model's world. One seed gives one scene, at any size of picture.

Lengths are in units of the picture's shorter side. A caption may leave out size, texture, place or background; what it says is true.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...backend.assets.vocabulary import BACKGROUNDS, CENTER, COLOURS, COLUMNS, GREY, ROWS, SHAPES, SIZES, TEXTURES

Rgb = tuple[int, int, int]

RGB: Final[dict[str, Rgb]] = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (250, 215, 40),
    "green": (42, 157, 70),
    "blue": (35, 90, 205),
    "purple": (125, 45, 165),
    "white": (245, 245, 245),
    "black": (25, 25, 28),
    GREY: (135, 138, 142),
}
RADIUS: Final = {"small": 0.10, "medium": 0.145, "large": 0.20}
PLACES: Final = tuple(
    " ".join(word for word in (row, column) if word) or CENTER
    for row in ("top", "", "bottom")
    for column in ("left", "", "right")
)
"""The nine places, row by row."""
_NEAR_EDGE: Final = 0.22
_JITTER: Final = 0.03
_APART: Final = 1.2
"""Objects are at least so many times the sum of their radii apart."""
_SUPERSAMPLING: Final = 4
_TEXTURE_SHADE: Final = 0.55
_LIGHT_OR_DARK: Final[dict[str, Rgb]] = {"black": (95, 95, 100), "white": (190, 200, 215)}
_HELD_OUT_OF: Final = 16
"""One caption of so many is never trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One object."""

    shape: str
    colour: str
    size: str
    texture: str
    place: str
    offset: tuple[float, float]
    """From the place's centre, right and down."""
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture before it is drawn."""

    things: tuple[Thing, ...]
    background: str
    gradient: float
    """How much lighter the top is than the bottom, -1 to 1 of a small range."""
    caption: str


def place_centre(place: str, width: int, height: int) -> tuple[float, float]:
    """The centre of a place in pixels."""
    words = place.split()
    side = min(width, height)

    def along(length: int, low: str, high: str) -> float:
        near = _NEAR_EDGE * side
        return near if low in words else length - near if high in words else length / 2

    return along(width, *COLUMNS), along(height, *ROWS)


def random_scene(dice: random.Random, *, count: int | None = None) -> Scene:
    """A scene of one to three objects whose caption is not held out."""
    while True:
        scene = any_scene(dice, count=count)
        if not is_held_out(scene.caption):
            return scene


def held_out_scene(dice: random.Random, *, count: int, full: bool = True) -> Scene:
    """A scene whose caption no training ever saw. ``full``: the caption says everything but the size."""
    while True:
        scene = any_scene(dice, count=count, full=full)
        if is_held_out(scene.caption):
            return scene


def is_held_out(caption: str) -> bool:
    """Whether a caption is kept for tests: decided by its own hash, so that nothing has to be remembered."""
    return hashlib.blake2b(caption.encode(), digest_size=4).digest()[0] % _HELD_OUT_OF == 0


def any_scene(dice: random.Random, *, count: int | None = None, full: bool = False) -> Scene:
    """A scene and a caption for it."""
    background = dice.choice(BACKGROUNDS)
    things: list[Thing] = []
    wanted = count or dice.choices((1, 2, 3), (4, 5, 2))[0]
    while len(things) < wanted:
        thing = _thing(dice, background)
        if all(_apart(thing, other) and thing.colour != other.colour for other in things):
            things.append(thing)
        elif dice.random() < 0.02:
            things.clear()  # a corner with no room left
    gradient = dice.uniform(-1, 1) if dice.random() < 0.5 else 0.0
    caption = _caption(dice, things, background, full=full)
    return Scene(things=tuple(things), background=background, gradient=gradient, caption=caption)


def _thing(dice: random.Random, background: str) -> Thing:
    size = dice.choice(SIZES)
    return Thing(
        shape=dice.choice(SHAPES),
        colour=dice.choice([colour for colour in COLOURS if colour != background]),
        size=size,
        texture=dice.choices(TEXTURES, (6, 2, 2))[0],
        place=dice.choice(PLACES),
        offset=(dice.uniform(-_JITTER, _JITTER), dice.uniform(-_JITTER, _JITTER)),
        radius=RADIUS[size] * dice.uniform(0.94, 1.06),
    )


def _apart(one: Thing, other: Thing) -> bool:
    (x1, y1), (x2, y2) = (_centre_in_units(thing) for thing in (one, other))
    return math.hypot(x1 - x2, y1 - y2) > _APART * (one.radius + other.radius)


def _centre_in_units(thing: Thing) -> tuple[float, float]:
    x, y = place_centre(thing.place, 1000, 1000)
    return x / 1000 + thing.offset[0], y / 1000 + thing.offset[1]


def _caption(dice: random.Random, things: list[Thing], background: str, *, full: bool) -> str:
    def says(chance: float) -> bool:
        return full or dice.random() < chance

    parts = []
    for thing in things:
        words = ["a"]
        words += [thing.size] if not full and dice.random() < 0.6 else []
        words += [thing.texture] if thing.texture != "plain" or (not full and dice.random() < 0.2) else []
        words += [thing.colour, thing.shape]
        words += ["at the", thing.place] if says(0.75) else []
        parts.append(" ".join(words))
    return " and ".join(parts) + (f" on a {background} background" if says(0.75) else "")


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    """The picture, uint8 ``[height, width, 3]``, with smooth edges."""
    side = min(width, height)
    picture = Image.fromarray(_background(scene, width, height))
    for thing in scene.things:
        x, y = place_centre(thing.place, width, height)
        x, y = x + thing.offset[0] * side, y + thing.offset[1] * side
        mask = shape_mask(thing.shape, x, y, thing.radius * side, width, height)
        picture.paste(_paint(thing, width, height, side), (0, 0), mask)
    return np.asarray(picture)


def _background(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    base = np.array(RGB[scene.background], dtype=np.float64)
    ramp = np.linspace(14, -14, height)[:, None, None] * scene.gradient
    rows = np.clip(base[None, None, :] + ramp, 0, 255)
    return np.broadcast_to(rows, (height, width, 3)).round().astype(np.uint8).copy()


def _paint(thing: Thing, width: int, height: int, side: int) -> Image.Image:
    """The object's surface, over the whole picture."""
    base = Image.new("RGB", (width, height), RGB[thing.colour])
    if thing.texture == "plain":
        return base
    base.paste(texture_shade(thing.colour), (0, 0), _pattern(thing.texture, width, height, side))
    return base


def texture_shade(colour: str) -> Rgb:
    """The second colour of a striped or dotted object: a darker tone, where that would not be taken for another colour."""
    if colour in _LIGHT_OR_DARK:
        return _LIGHT_OR_DARK[colour]
    red, green, blue = (round(value * _TEXTURE_SHADE) for value in RGB[colour])
    return red, green, blue


def _pattern(texture: str, width: int, height: int, side: int) -> Image.Image:
    period = side * 0.0625
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    if texture == "striped":
        distance = np.abs((y / period) % 1 - 0.5) - 0.25
    else:
        cells = (x / period / 1.4) % 1 - 0.5, (y / period / 1.4) % 1 - 0.5
        distance = np.hypot(*cells) - 0.28
    return Image.fromarray((np.clip(0.5 - distance * period, 0, 1) * 255).astype(np.uint8))


def shape_mask(shape: str, x: float, y: float, radius: float, width: int, height: int) -> Image.Image:
    """How much of each pixel a shape covers, 0 to 255."""
    scale = _SUPERSAMPLING
    mask = Image.new("L", (width * scale, height * scale))
    pen = ImageDraw.Draw(mask)
    x, y, radius = x * scale, y * scale, radius * scale
    if shape == "circle":
        pen.ellipse(_box(x, y, radius * 0.95), fill=255)
    elif shape == "ring":
        pen.ellipse(_box(x, y, radius), fill=255)
        pen.ellipse(_box(x, y, radius * 0.55), fill=0)
    else:
        pen.polygon([(x + px * radius, y + py * radius) for px, py in OUTLINES[shape]], fill=255)
    return mask.resize((width, height), Image.Resampling.BOX)


def _box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    return x - radius, y - radius, x + radius, y + radius


def _star() -> list[tuple[float, float]]:
    turns = [math.pi * (index / 5 - 0.5) for index in range(10)]
    return [
        (math.cos(turn) * far, math.sin(turn) * far)
        for index, turn in enumerate(turns)
        for far in [(1.08, 0.45)[index % 2]]
    ]


def _heart() -> list[tuple[float, float]]:
    points = []
    for index in range(60):
        t = 2 * math.pi * index / 60
        across = 16 * math.sin(t) ** 3
        up = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((across / 16, -(up + 2.5) / 15))
    return points


_ARM: Final = 0.33
OUTLINES: Final[dict[str, list[tuple[float, float]]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "diamond": [(0.0, -1.1), (0.78, 0.0), (0.0, 1.1), (-0.78, 0.0)],
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
    "star": _star(),
    "heart": _heart(),
}  # fmt: skip
"""Corners in units of the radius, right and down."""
