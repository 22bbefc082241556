"""Presets are what plans name, and take the right kind of codec for either call."""

from __future__ import annotations

import pytest
from tutti.backend.compression.codecs import CODECS
from tutti.backend.compression.policy import AUTO, AUTO_BEGINS, OFF, PRESETS, Preset
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
