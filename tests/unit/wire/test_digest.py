"""Digests name content: stable for ever, and different when anything is."""

from __future__ import annotations

import array
import re
from dataclasses import replace

import pytest
from tutti.backend.wire.codec import encode
from tutti.backend.wire.digest import content_digest, job_digest
from tutti.backend.wire.tensors import WireTensor

from tests.wire.examples import SAMPLE, SAMPLE_TENSORS, UPLOAD_TENSORS

CONTENT = "b7b0e5450d2002ad8062c6a54d194df3"
JOB = "f5a504234a1037a33c73eaa91444bdb0"
NO_ID = "0" * 32


def frames() -> list[bytes]:
    return [bytes(frame) for frame in encode(replace(SAMPLE, job_id=NO_ID), SAMPLE_TENSORS)]


def test_the_digest_of_an_upload_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert content_digest(UPLOAD_TENSORS) == CONTENT


def test_the_digest_of_a_job_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert job_digest("c" * 32, "12", frames()) == JOB


def test_a_digest_is_an_id() -> None:
    assert re.fullmatch("[0-9a-f]{32}", content_digest(UPLOAD_TENSORS))
    assert re.fullmatch("[0-9a-f]{32}", job_digest("c" * 32, "12", frames()))


def test_the_order_of_tensors_does_not_count() -> None:
    assert content_digest(dict(reversed(UPLOAD_TENSORS.items()))) == content_digest(UPLOAD_TENSORS)


def test_the_kind_of_memory_does_not_count() -> None:
    for kind in (bytearray, memoryview, lambda data: array.array("B", data)):
        same = {name: replace(part, data=kind(part.data)) for name, part in UPLOAD_TENSORS.items()}
        assert content_digest(same) == content_digest(UPLOAD_TENSORS)
    floats = WireTensor(
        dtype="F32", shape=(2, 2), data=memoryview(array.array("f", range(4))).cast("B").cast("f", [2, 2])
    )
    plain = replace(floats, data=bytes(floats.data))
    assert content_digest({"x": floats}) == content_digest({"x": plain})


@pytest.mark.parametrize("name", [name for name, part in UPLOAD_TENSORS.items() if part.data])
def test_any_changed_byte_of_a_tensor_changes_the_digest(name: str) -> None:
    seen = {content_digest(UPLOAD_TENSORS)}
    data = UPLOAD_TENSORS[name].data
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        seen.add(content_digest(UPLOAD_TENSORS | {name: replace(UPLOAD_TENSORS[name], data=changed)}))
    assert len(seen) == len(data) + 1


def test_any_changed_byte_of_a_message_changes_the_job() -> None:
    whole = frames()
    seen = {job_digest("c" * 32, "12", whole)}
    count = 0
    for index, frame in enumerate(whole):
        for place in range(len(frame)):
            changed = frame[:place] + bytes([frame[place] ^ 1]) + frame[place + 1 :]
            seen.add(job_digest("c" * 32, "12", [*whole[:index], changed, *whole[index + 1 :]]))
            count += 1
    assert len(seen) == count + 1


@pytest.mark.parametrize(
    "other",
    [
        {"x": WireTensor(dtype="I32", shape=(2, 3), data=bytes(24))},
        {"x": WireTensor(dtype="F32", shape=(3, 2), data=bytes(24))},
        {"x": WireTensor(dtype="F32", shape=(6,), data=bytes(24))},
        {"y": WireTensor(dtype="F32", shape=(2, 3), data=bytes(24))},
        {
            "x": WireTensor(dtype="F32", shape=(2, 3), data=bytes(24)),
            "y": WireTensor(dtype="F32", shape=(0,), data=b""),
        },
        {},
    ],
    ids=["dtype", "shape", "dimensions", "name", "an empty tensor more", "nothing"],
)
def test_the_same_bytes_under_another_description_are_another_content(other: dict[str, WireTensor]) -> None:
    assert content_digest(other) != content_digest({"x": WireTensor(dtype="F32", shape=(2, 3), data=bytes(24))})


def test_bytes_that_move_from_one_tensor_to_the_next_are_another_content() -> None:
    def two(first: bytes, second: bytes) -> dict[str, WireTensor]:
        parts = {"a": first, "b": second}
        return {name: WireTensor(dtype="U8", shape=(len(data),), data=data) for name, data in parts.items()}

    assert content_digest(two(b"12", b"34")) != content_digest(two(b"123", b"4"))
    assert content_digest(two(b"b|U8|1|1", b"2")) != content_digest(two(b"", b"b|U8|1|12"))


@pytest.mark.parametrize(
    ("client", "node"), [("d" * 32, "12"), ("c" * 32, "13"), ("c" * 32, "12|"), ("c" * 31, "c|12")]
)
def test_another_client_or_node_is_another_job(client: str, node: str) -> None:
    assert job_digest(client, node, frames()) != job_digest("c" * 32, "12", frames())


def test_frames_that_are_cut_elsewhere_are_another_job() -> None:
    """Two messages whose frames are the same bytes in a row must not be one job."""
    assert job_digest("c" * 32, "12", [b"ab", b"c"]) != job_digest("c" * 32, "12", [b"a", b"bc"])
    assert job_digest("c" * 32, "12", [b"abc"]) != job_digest("c" * 32, "12", [b"abc", b""])
    assert job_digest("c" * 32, "1|2", [b"abc"]) != job_digest("c" * 32, "1", [b"2|abc"])
