"""Presets are what plans name, and take the right kind of codec for either call."""

from __future__ import annotations

import pytest
from tutti.backend.compression.codecs import CODECS
from tutti.backend.compression.policy import AUTO, AUTO_BEGINS, LAYER_GROUPS, OFF, PRESETS, Preset, layer_group
from tutti.backend.parallel.plan import COMPRESSIONS


def test_a_plan_can_name_every_preset_auto_and_off() -> None:
    assert (OFF, AUTO, *PRESETS) == COMPRESSIONS
    assert AUTO_BEGINS in PRESETS
    assert {name: preset.name for name, preset in PRESETS.items()} == {name: name for name in PRESETS}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_call_takes_the_codec_of_its_kind(preset: Preset) -> None:
    assert preset.codec(is_key=True).is_key
    assert not preset.codec(is_key=False).is_key


@pytest.mark.parametrize(("key", "residual"), [("int8", "int4"), ("key-int8", "raw")])
def test_a_codec_of_the_other_kind_is_refused(key: str, residual: str) -> None:
    with pytest.raises(ValueError, match="is none"):
        Preset(name="wrong", key=key, residual=residual)
    assert key in CODECS


def test_layers_have_a_group_each_as_long_as_there_are_some_and_share_them_evenly_then() -> None:
    """Attentions are counted from 1."""
    assert [layer_group(layer) for layer in range(1, LAYER_GROUPS + 1)] == list(range(LAYER_GROUPS))
    assert [layer_group(LAYER_GROUPS + layer) for layer in (1, 2)] == [0, 1]


def test_a_preset_may_name_a_codec_for_each_layer_group() -> None:
    by_group = ("int8", *["binary"] * (LAYER_GROUPS - 1))
    preset = Preset(name="mixed", key="key-int4", residual="quaternary", residual_by_group=by_group)
    assert [preset.codec(is_key=False, group=group).name for group in (0, 1, 63)] == ["int8", "binary", "binary"]
    assert preset.codec(is_key=True, group=0).name == "key-int4"
    uniform = PRESETS["balanced"]
    assert {uniform.codec(is_key=False, group=group).name for group in (0, 1, 63)} == {"quaternary"}


@pytest.mark.parametrize(
    ("by_group", "complaint"), [(("int8",), "64 groups, or none: not 1"), (("int8",) * 63 + ("raw",), "raw is none")]
)
def test_a_choice_by_group_that_is_none_is_refused(by_group: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Preset(name="wrong", key="key-int4", residual="int4", residual_by_group=by_group)
