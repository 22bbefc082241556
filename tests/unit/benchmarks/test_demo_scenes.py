"""Drawn scenes: what the caption says is what is there, and held-out captions are never trained on."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tutti.backend.assets.prompt import parse
from tutti.backend.assets.vocabulary import SHAPES
from tutti.benchmarks.demo_model.scenes import (
    RGB,
    Scene,
    Thing,
    draw,
    held_out_scene,
    is_held_out,
    place_centre,
    random_scene,
    shape_mask,
)


def scene_of(**changes: object) -> Scene:
    thing = {
        "shape": "circle",
        "colour": "red",
        "size": "large",
        "texture": "plain",
        "place": "top left",
        "offset": (0.0, 0.0),
        "radius": 0.2,
    }
    return Scene(things=(Thing(**(thing | changes)),), background="white", gradient=0.0, caption="")  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "height"), [(128, 128), (192, 128), (128, 256)])
@pytest.mark.parametrize("place", ["top left", "center", "bottom right", "left"])
def test_an_object_is_where_its_place_is(place: str, width: int, height: int) -> None:
    picture = draw(scene_of(place=place), width, height).astype(int)
    x, y = place_centre(place, width, height)
    red = np.abs(picture - RGB["red"]).sum(axis=2) < 30
    rows, columns = np.nonzero(red)
    assert abs(columns.mean() - x) < 1.5
    assert abs(rows.mean() - y) < 1.5
    assert (picture[~red].reshape(-1, 3).mean(axis=0) > 220).all(), "the rest is background"


def test_eight_shapes_are_eight_pictures() -> None:
    masks = [np.asarray(shape_mask(shape, 64, 64, 30, 128, 128)).astype(int) for shape in SHAPES]
    for index, one in enumerate(masks):
        for other in masks[index + 1 :]:
            assert np.abs(one - other).sum() / 255 > 0.05 * one.sum() / 255


def test_a_scene_is_the_same_at_every_run_and_another_for_another_seed() -> None:
    one, again, other = (random_scene(random.Random(seed)) for seed in (1, 1, 2))
    assert one == again
    assert np.array_equal(draw(one, 64, 64), draw(again, 64, 64))
    assert one != other


def test_captions_know_only_taught_words_and_name_every_object() -> None:
    dice = random.Random(3)
    for _ in range(300):
        scene = random_scene(dice)
        prompt = parse(scene.caption)
        assert (prompt.unknown, prompt.left_out) == ((), ())
        for part, thing in enumerate(scene.things):
            assert {(thing.shape, part), (thing.colour, part)} <= set(prompt.words)


def test_held_out_captions_are_never_trained_on() -> None:
    dice = random.Random(4)
    assert not any(is_held_out(random_scene(dice).caption) for _ in range(500))
    held_out = [held_out_scene(dice, count=2) for _ in range(20)]
    assert all(is_held_out(scene.caption) for scene in held_out)
    assert all(len(parse(scene.caption).words) >= 7 for scene in held_out), "they say where, and on what"


def test_objects_do_not_touch() -> None:
    dice = random.Random(5)
    for _ in range(100):
        scene = random_scene(dice, count=3)
        covered = [np.asarray(_mask(thing)) > 0 for thing in scene.things]
        for index, one in enumerate(covered):
            for other in covered[index + 1 :]:
                assert (one & other).sum() <= 0.02 * min(one.sum(), other.sum())


def _mask(thing: Thing) -> object:
    x, y = place_centre(thing.place, 128, 128)
    x, y = x + thing.offset[0] * 128, y + thing.offset[1] * 128
    return shape_mask(thing.shape, x, y, thing.radius * 128, 128, 128)
