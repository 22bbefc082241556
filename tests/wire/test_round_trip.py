"""What is sent is what arrives, for every message and every legal value."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tutti.backend.wire.codec import decode, encode
from tutti.backend.wire.messages import MESSAGES

from tests.wire.examples import EXAMPLES, Example
from tests.wire.strategies import whole

EXAMPLES_EACH = 40


@pytest.mark.parametrize("cls", MESSAGES.values(), ids=MESSAGES)
@settings(
    max_examples=EXAMPLES_EACH,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_every_legal_message_arrives_as_it_was_sent(cls: type, data: st.DataObject) -> None:
    sent = data.draw(whole(cls))
    frames = encode(sent.message, sent.tensors, sent.manifest)
    assert decode(frames) == sent
    assert encode(sent.message, sent.tensors, sent.manifest) == frames


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_every_example_arrives_as_it_was_sent(example: Example) -> None:
    received = decode(example.frames())
    assert received.message == example.message
    assert received.tensors == example.tensors
    assert received.manifest == example.manifest


def test_there_is_an_example_of_every_message() -> None:
    assert {type(example.message) for example in EXAMPLES.values()} == set(MESSAGES.values())


def test_a_changed_field_arrives_changed() -> None:
    """The control: the comparison above is not blind."""
    ping, pong = EXAMPLES["Ping"], EXAMPLES["Pong"]
    assert decode(ping.frames()).message != pong.message
    for example in EXAMPLES.values():
        frames = example.frames()
        for index in range(2 + (example.manifest is not None), len(frames)):
            if frames[index]:
                changed = [*frames[:index], bytes([frames[index][0] ^ 1]) + frames[index][1:], *frames[index + 1 :]]
                assert decode(changed).tensors != example.tensors
