"""Is what a prompt asked for in the picture? Colours by the palette of the demo model's world, shapes by their drawn templates, places by distance.

    picture ► nearest colour per pixel ► connected pieces of each colour ► the drawn shape that covers a piece best ► nearest place

Nothing is learned here and nothing is tuned to a model: the checker is itself tested on drawn scenes, damaged ones, and wrong questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ...backend.assets.vocabulary import GREY, SHAPES
from ..demo_model.scenes import PLACES, RGB, place_centre, shape_mask, texture_shade

Mask = NDArray[np.bool_]
Picture = NDArray[np.uint8]

MINIMUM_FIT: Final = 0.70
"""Intersection over union with the best template below which a piece has no shape at all."""
_SMALLEST_SHARE: Final = 0.006
"""A piece below this share of the picture is a stain. The smallest object (a small star) covers 0.013."""
_STRANGE: Final = 90.0
"""Distance in RGB at which a pixel is of no colour that we know."""
_SMOOTHING: Final = 0.6
"""Standard deviation in pixels of the blur that takes noise out before colours are told apart."""
_UNIT_RADIUS: Final = 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One object that a prompt asks for."""

    shape: str
    colour: str
    place: str | None = None
    """None: anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One object that is in a picture."""

    shape: str
    """Empty where no template fits."""
    colour: str
    place: str
    fit: float
    """Intersection over union with the template."""
    x: float
    y: float
    """Its centre in pixels."""

    def answers(self, asked: Asked) -> bool:
        """Whether it is what was asked for."""
        return (self.shape, self.colour) == (asked.shape, asked.colour) and asked.place in (None, self.place)


def check(picture: Picture, asked: Sequence[Asked]) -> list[bool]:
    """For each asked thing, whether it is in ``picture`` (uint8 ``[H, W, 3]``). One object answers one question; more objects do no harm."""
    left = find_objects(picture, {thing.colour for thing in asked})
    answers = []
    for thing in asked:
        match = next((found for found in left if found.answers(thing)), None)
        if match is not None:
            left.remove(match)
        answers.append(match is not None)
    return answers


def find_objects(picture: Picture, colours: Iterable[str] | None = None) -> list[Found]:
    """The objects of some colours (None: of all but the background's), largest first."""
    distances = colour_distances(picture)
    nearest = np.where(distances.min(axis=0) < _STRANGE, distances.argmin(axis=0), -1)
    background = int(np.bincount(nearest[nearest >= 0], minlength=len(_NAMES)).argmax())
    found = [
        (int(piece.sum()), _recognise(piece, colour))
        for colour in sorted(colours or _NAMES)
        if colour != _NAMES[background]
        for piece in _pieces(distances, nearest, _NAMES.index(colour), background)
    ]
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])]


# --- colours ----------------------------------------------------------------------------------------------------------

_NAMES: Final = tuple(RGB)


def colour_distances(picture: Picture) -> NDArray[np.float64]:
    """Distance of every pixel to every colour of :data:`~..demo_model.scenes.RGB`, ``[colours, H, W]``.

    A colour is the segment from its tone to the second tone of its textures, so that a striped object, with all tones between
    its stripes, is of one colour.
    """
    smooth = ndimage.gaussian_filter(picture.astype(np.float64), (_SMOOTHING, _SMOOTHING, 0), mode="nearest")
    return np.stack([_distance(smooth, *_tones(name)) for name in _NAMES])


def _tones(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    second = RGB[name] if name == GREY else texture_shade(name)
    return np.array(RGB[name], dtype=np.float64), np.array(second, dtype=np.float64)


def _distance(pixels: NDArray[np.float64], one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distance of ``pixels`` ``[H, W, 3]`` to the segment between two tones."""
    along = other - one
    share = np.clip((pixels - one) @ along / max(float(along @ along), 1.0), 0.0, 1.0)
    away: NDArray[np.float64] = np.linalg.norm(pixels - one - share[..., None] * along, axis=-1)
    return away


def _pieces(distances: NDArray[np.float64], nearest: NDArray[np.int64], colour: int, background: int) -> Iterator[Mask]:
    """The connected pieces of a colour.

    An edge's tones lie between object and background and may look like a third colour, so edges are decided between these two only:
    a piece is what is nearer to the colour than to the background, where most of it is nearest to the colour of all. What is
    solidly of another colour is cut away, so that objects that touch stay two.
    """
    smallest = round(_SMALLEST_SHARE * nearest.size)
    mask = distances[colour] < distances[background]
    for other in range(len(_NAMES)):
        if other not in (colour, background):
            for solid in _connected(ndimage.binary_opening(nearest == other, np.ones((3, 3), dtype=bool)), smallest):
                mask &= ~solid
    for piece in _connected(mask, smallest):
        votes = nearest[piece]
        if np.bincount(votes[votes >= 0], minlength=len(_NAMES)).argmax() == colour:
            yield piece


def _connected(mask: Mask, smallest: int) -> list[Mask]:
    """The connected pieces of a mask that have at least ``smallest`` pixels."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return [labels == number for number in range(1, count + 1) if sizes[number] >= smallest]


# --- shapes -----------------------------------------------------------------------------------------------------------


def _recognise(piece: Mask, colour: str) -> Found:
    """The template that covers a piece best, drawn at the piece's centre and of its size."""
    height, width = piece.shape
    fits = {shape: _fit(piece, shape) for shape in SHAPES}
    shape = max(fits, key=lambda name: fits[name][0])
    fit, x, y = fits[shape]
    return Found(
        shape=shape if fit >= MINIMUM_FIT else "",
        colour=colour,
        place=min(PLACES, key=lambda place: _squared(place_centre(place, width, height), (x, y))),
        fit=fit,
        x=x,
        y=y,
    )


def _squared(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2


def _fit(piece: Mask, shape: str) -> tuple[float, float, float]:
    """(intersection over union, x, y) of a shape of the piece's area whose centre of mass is the piece's."""
    rows, columns = np.nonzero(piece)
    area, off_x, off_y = _unit_moments(shape)
    radius = float(np.sqrt(len(rows) / area))
    x, y = columns.mean() + 0.5 - off_x * radius, rows.mean() + 0.5 - off_y * radius
    reach = 1.3 * radius
    left, right = int(min(x - reach, columns.min())), int(max(x + reach, columns.max())) + 1
    top, bottom = int(min(y - reach, rows.min())), int(max(y + reach, rows.max())) + 1
    left, top = max(0, left), max(0, top)
    cut = piece[top : bottom + 1, left : right + 1]
    drawn = np.asarray(shape_mask(shape, x - left, y - top, radius, cut.shape[1], cut.shape[0])) >= 128
    return float((cut & drawn).sum() / (cut | drawn).sum()), x, y


@cache
def _unit_moments(shape: str) -> tuple[float, float, float]:
    """A shape of radius 1: its area, and its centre of mass relative to its centre, right and down."""
    side = int(3 * _UNIT_RADIUS)
    mask = np.asarray(shape_mask(shape, side / 2, side / 2, _UNIT_RADIUS, side, side)) / 255
    down, right = ndimage.center_of_mass(mask)
    return (
        float(mask.sum()) / _UNIT_RADIUS**2,
        (right + 0.5 - side / 2) / _UNIT_RADIUS,
        (down + 0.5 - side / 2) / _UNIT_RADIUS,
    )
