"""The bytes of version 1.0, frozen. They may gain rows; a row that is there never changes while the major version is 1:
the daemon and its clients are updated at different times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tutti.backend.wire.codec import MAJOR, MINOR, decode
from tutti.backend.wire.messages import MESSAGES

from tests.wire.examples import EXAMPLES

GOLDEN: dict[str, list[str]] = json.loads((Path(__file__).parent / "golden_1_0.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_of_version_1_0_are_read_as_they_were_meant(name: str) -> None:
    received = decode([bytes.fromhex(frame) for frame in GOLDEN[name]])
    expected = EXAMPLES[name]
    assert received.message == expected.message
    assert received.tensors == expected.tensors
    assert received.manifest == expected.manifest


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_sent_today_is_byte_for_byte_version_1_0(name: str) -> None:
    assert (MAJOR, MINOR) == (1, 0), "a later minor version sends other preambles: compare the other frames only"
    assert [frame.hex() for frame in EXAMPLES[name].frames()] == GOLDEN[name]


def test_every_message_has_golden_bytes() -> None:
    assert set(MESSAGES) <= set(GOLDEN)
    assert set(EXAMPLES) == set(GOLDEN)
