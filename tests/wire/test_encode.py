"""What the peer would refuse is never sent, and equal messages are equal bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tutti.backend.errors import LocalProtocolError
from tutti.backend.wire import messages as m
from tutti.backend.wire.codec import encode
from tutti.backend.wire.manifest import encode_manifest

from tests.wire.examples import EXAMPLES, JOB, MODEL, SAMPLE, SAMPLE_TENSORS, tensor


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (-1, "nonce: -1 is not within"),
        (2**63, "nonce: 9223372036854775808 is not within"),
        (2**64, "nonce: an integer of 65 bits is not within"),
        (10**5_000, "nonce: an integer of 16610 bits is not within"),
        (True, "nonce: expected an integer, got bool"),
        (1.0, "nonce: expected an integer, got float"),
        ("1", "nonce: expected an integer, got str"),
        (None, "nonce: expected an integer, got NoneType"),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, int) or value < 2**65 else "huge",
)
def test_an_integer_out_of_its_bounds_is_not_sent(value: Any, says: str) -> None:
    with pytest.raises(LocalProtocolError, match=says):
        encode(m.Ping(nonce=value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None, 10**400, 1j], ids=str)
def test_a_number_that_is_none_is_not_sent(value: Any) -> None:
    with pytest.raises(LocalProtocolError, match="cfg: "):
        encode(dataclasses.replace(SAMPLE, cfg=value), SAMPLE_TENSORS)


@pytest.mark.parametrize(
    "text", ["\ud800", "models/\udce4.safetensors", "\udfff\ud800"], ids=["lone", "from a file name", "reversed"]
)
def test_text_without_a_utf_8_form_is_not_sent(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode(m.Describe(request=1, model=text))
    with pytest.raises(LocalProtocolError):
        encode_manifest([m.ManifestEntry(name=text, kind="FILE", numbers=(1,))])


@pytest.mark.parametrize("stranger", [MODEL, m.Call(branch="x", conditioning=JOB), "Ping", 1, None, m.Ping], ids=repr)
def test_what_is_no_message_is_not_sent(stranger: Any) -> None:
    with pytest.raises(LocalProtocolError, match="no message of the protocol"):
        encode(stranger)


def test_a_class_that_only_borrows_a_name_is_not_sent() -> None:
    ping = dataclasses.make_dataclass("Ping", [("nonce", int)])
    with pytest.raises(LocalProtocolError, match="no message of the protocol"):
        encode(ping(1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"branches": list(SAMPLE.branches)}, "branches: expected a tuple, got list"),
        ({"branches": ("positive", "negative")}, r"branches\[0\]: expected Branch, got str"),
        ({"on": "flux"}, "on: expected ModelRef, got str"),
        ({"on": None}, "on: expected ModelRef, got NoneType"),
        ({"previews": 1}, "previews: expected true or false, got int"),
        ({"sampler": "lcm"}, "sampler: expected one of dpmpp_2m, euler, heun, got 'lcm'"),
        ({"job_id": JOB.upper()}, "job_id: .* does not match"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_field_of_another_type_is_not_sent(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(LocalProtocolError, match=says):
        encode(dataclasses.replace(SAMPLE, **changes), SAMPLE_TENSORS)


@pytest.mark.parametrize(
    "options", [{"a": [1]}, {"a": None}, {1: 1}, {"": 1}, [("a", 1)], {"a": float("nan")}], ids=str
)
def test_options_that_are_no_scalars_are_not_sent(options: Any) -> None:
    positive, negative = SAMPLE.branches
    branches = (dataclasses.replace(positive, options=options), negative)
    with pytest.raises(LocalProtocolError, match=r"branches\[0\]\.options"):
        encode(dataclasses.replace(SAMPLE, branches=branches), SAMPLE_TENSORS)


def test_a_secret_is_quoted_by_no_error() -> None:
    token = "C4NARY" * 10 + "x" * 4
    hello = dataclasses.replace(EXAMPLES["RankHello"].message, token=token)  # type: ignore[type-var]
    with pytest.raises(LocalProtocolError) as caught:
        encode(hello)
    assert "C4NARY" not in str(caught.value)
    assert "C4NARY" not in repr(hello)


def test_equal_messages_are_equal_bytes_whatever_order_their_parts_were_given_in() -> None:
    positive, negative = SAMPLE.branches
    backwards = dataclasses.replace(positive, options=dict(reversed(positive.options.items())))
    again = dataclasses.replace(SAMPLE, branches=(backwards, negative))
    assert again == SAMPLE
    assert encode(again, dict(reversed(SAMPLE_TENSORS.items()))) == encode(SAMPLE, SAMPLE_TENSORS)


def test_a_whole_number_in_a_float_field_is_the_same_bytes() -> None:
    assert encode(dataclasses.replace(SAMPLE, cfg=4), SAMPLE_TENSORS) == encode(
        dataclasses.replace(SAMPLE, cfg=4.0), SAMPLE_TENSORS
    )


def test_a_negative_branch_is_not_wanted_where_comfyui_would_drop_it() -> None:
    positive, _ = SAMPLE.branches
    tensors = {"noise": tensor("F32", 1, 4, 3, 5), "sigmas": tensor("F32", 5)}
    for cfg in (1.0, 1.0 + 1e-10):  # as close as math.isclose takes for equal
        encode(dataclasses.replace(SAMPLE, cfg=cfg, branches=(positive,)), tensors)
    with pytest.raises(LocalProtocolError, match="a negative branch goes with a cfg other than 1"):
        encode(dataclasses.replace(SAMPLE, cfg=1.0 + 1e-8, branches=(positive,)), tensors)
