"""The checker finds what was drawn, also in damaged pictures, and nothing that was not."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from tutti.backend.assets.vocabulary import COLOURS, SHAPES, TEXTURES
from tutti.benchmarks.demo_model.scenes import PLACES, RADIUS, Scene, Thing, any_scene, draw
from tutti.benchmarks.quality.checker import Asked, check, find_objects

Picture = NDArray[np.uint8]
SCENES = 60
SIDE = 128


def unharmed(picture: Picture) -> Picture:
    return picture


def blurred(picture: Picture) -> Picture:
    return ndimage.gaussian_filter(picture.astype(np.float64), (1.0, 1.0, 0)).round().astype(np.uint8)


def noisy(picture: Picture) -> Picture:
    noise = np.random.default_rng(0).normal(0, 8, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def compressed(picture: Picture) -> Picture:
    """JPEG at a quality that nobody would ship, with its colours at half the resolution."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file).convert("RGB"))


def everything_in(scene: Scene) -> list[Asked]:
    return [Asked(shape=thing.shape, colour=thing.colour, place=thing.place) for thing in scene.things]


def one(shape: str, colour: str, *, background: str = "grey", texture: str = "plain", size: str = "small") -> Scene:
    thing = Thing(
        shape=shape, colour=colour, size=size, texture=texture, place="top right", offset=(0.01, -0.02), radius=RADIUS[size]
    )  # fmt: skip
    return Scene(things=(thing,), background=background, gradient=0.7, caption="")


@pytest.mark.parametrize(("damage", "at_least"), [(unharmed, 0.97), (blurred, 0.93), (noisy, 0.93), (compressed, 0.93)])
@pytest.mark.parametrize("count", [1, 2])
def test_what_was_drawn_is_found(count: int, damage: Callable[[Picture], Picture], at_least: float) -> None:
    dice = random.Random(f"checker {count}")
    scenes = [any_scene(dice, count=count, full=True) for _ in range(SCENES)]
    right = [all(check(damage(draw(scene, SIDE, SIDE)), everything_in(scene))) for scene in scenes]
    assert np.mean(right) >= at_least


def test_larger_and_oblong_pictures_are_checked_as_well() -> None:
    dice = random.Random("oblong")
    for width, height in ((192, 128), (128, 192), (256, 256)):
        scenes = [any_scene(dice, count=2, full=True) for _ in range(8)]
        right = [all(check(draw(scene, width, height), everything_in(scene))) for scene in scenes]
        assert np.mean(right) >= 0.97, (width, height)


HARD = [("white", "grey"), ("black", "grey"), ("yellow", "white"), ("white", "yellow"), ("purple", "black"), ("orange", "red"), ("purple", "blue")]  # fmt: skip
"""(colour, background) that lie close together, or between which the tones of a third colour lie."""


@pytest.mark.parametrize(("colour", "background"), HARD)
def test_every_small_shape_is_told_from_every_other_on_a_hard_background(colour: str, background: str) -> None:
    """Circles from rings, diamonds from squares, stripes or not: exactly one object, and the right one."""
    for shape, texture in product(SHAPES, TEXTURES):
        found = find_objects(draw(one(shape, colour, background=background, texture=texture), SIDE, SIDE))
        assert [(thing.shape, thing.colour, thing.place) for thing in found] == [(shape, colour, "top right")], texture


@pytest.mark.parametrize("damage", [unharmed, compressed])
@pytest.mark.parametrize("wrong", ["colour", "shape", "place", "swapped pair"])
def test_a_wrong_question_is_denied(wrong: str, damage: Callable[[Picture], Picture]) -> None:
    """Negative control."""
    choices = {"colour": COLOURS, "shape": SHAPES, "place": PLACES}
    dice, denied = random.Random(f"wrong {wrong}"), 0
    for _ in range(SCENES):
        scene = any_scene(dice, count=2, full=True)
        first, second = everything_in(scene)
        if wrong == "swapped pair":
            asked = [replace(first, colour=second.colour), replace(second, colour=first.colour)]
        else:
            other = dice.choice([value for value in choices[wrong] if value != getattr(first, wrong)])
            asked = [replace(first, **{wrong: other}), second]
        denied += not all(check(damage(draw(scene, SIDE, SIDE)), asked))
    assert denied / SCENES >= 0.95


def test_nothing_is_found_where_nothing_is() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    assert find_objects(np.full((SIDE, SIDE, 3), 135, dtype=np.uint8)) == []
    assert not any(thing.shape for thing in find_objects(noise))


def test_half_an_object_has_another_shape_or_none() -> None:
    picture = draw(one("circle", "red", size="large"), SIDE, SIDE).copy()
    whole = check(picture, [Asked(shape="circle", colour="red")])
    picture[:, : round(SIDE * 0.78)] = picture[-1, 0]
    assert (whole, check(picture, [Asked(shape="circle", colour="red")])) == ([True], [False])


def test_objects_that_touch_are_two() -> None:
    left = Thing(
        shape="square", colour="red", size="large", texture="plain", place="center", offset=(-0.17, 0), radius=0.2
    )
    right = replace(left, shape="circle", colour="orange", offset=(0.18, 0.0))
    picture = draw(Scene(things=(left, right), background="grey", gradient=0.0, caption=""), SIDE, SIDE)
    assert {(thing.shape, thing.colour) for thing in find_objects(picture)} == {("square", "red"), ("circle", "orange")}


def test_one_object_answers_one_question() -> None:
    picture = draw(one("star", "blue"), SIDE, SIDE)
    star = Asked(shape="star", colour="blue")
    assert check(picture, [star, star]) == [True, False]


def test_a_place_is_asked_for_or_not() -> None:
    picture = draw(one("star", "blue"), SIDE, SIDE)
    star = Asked(shape="star", colour="blue")
    answers = [check(picture, [replace(star, place=place)]) for place in (None, "top right", "top")]
    assert answers == [[True], [True], [False]]
