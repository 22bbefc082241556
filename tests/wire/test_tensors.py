"""Tensors cross as they are: every dtype, any shape, no copy; and what does not fit its description is refused."""

from __future__ import annotations

import array
import struct

import pytest
import zmq
from tutti.backend.errors import LocalProtocolError, RemoteProtocolError
from tutti.backend.wire import messages as m
from tutti.backend.wire.codec import decode, encode
from tutti.backend.wire.dtypes import ITEM_BYTES
from tutti.backend.wire.tensors import WireTensor

from tests.wire.examples import DIGEST, EXAMPLES, JOB, tensor
from tests.wire.raw import edited, put

UPLOAD = m.Upload(job_id=JOB, digest=DIGEST)


def upload_of(row: list[object], data: bytes) -> list[bytes]:
    """An Upload of one tensor, whatever its row says."""
    return [*edited("Upload", lambda tree: put(tree, ["tensors"], [row]))[:2], data]


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_dtype_crosses_bit_for_bit(dtype: str) -> None:
    sent = tensor(dtype, 3, 5)  # type: ignore[arg-type]
    frames = encode(UPLOAD, {"x": sent})
    assert len(frames[2]) == 15 * ITEM_BYTES[dtype]
    assert decode(frames).tensors == {"x": sent}


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 5), (1, 1, 1, 1, 1, 1), (7, 11, 13)])
def test_every_shape_crosses(shape: tuple[int, ...]) -> None:
    assert decode(encode(UPLOAD, {"x": tensor("F16", *shape)})).tensors["x"] == tensor("F16", *shape)


def test_a_tensor_one_element_too_large_for_its_shape_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="x: the frame has 20 bytes, its shape says 16"):
        decode(upload_of(["x", "F32", [4]], bytes(20)))


def test_a_tensor_over_the_limit_is_refused_by_its_description_alone() -> None:
    with pytest.raises(RemoteProtocolError, match="x: 268435460 bytes, at most 268435456 are allowed"):
        decode(upload_of(["x", "F32", [2**26 + 1]], b""))


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match=r"tensors\[0\]: expected one of .*, got 'object'"):
        decode(upload_of(["x", "object", [4]], bytes(16)))


def test_a_dtype_of_another_width_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="x: the frame has 16 bytes, its shape says 8"):
        decode(upload_of(["x", "BF16", [4]], bytes(16)))


def test_a_negative_size_is_refused_even_when_the_product_is_right() -> None:
    with pytest.raises(RemoteProtocolError, match=r"\[0\]: -2 is not within 0 to 2147483647"):
        decode(upload_of(["x", "F32", [-2, -2]], bytes(16)))


def test_a_product_that_overflows_64_bits_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="x: 18446744073709551616 bytes, at most"):
        decode(upload_of(["x", "F32", [2**30, 2**30, 4]], b""))  # 0 in 64 bits, and 0 bytes come


def test_a_product_that_overflows_32_bits_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="x: 4294967312 bytes, at most"):
        decode(upload_of(["x", "F32", [4, 2**28 + 1]], bytes(16)))  # 16 in 32 bits, and 16 bytes come


# --- Frames as the transport hands them over --------------------------------------------------------------------------


def test_a_decoded_tensor_is_its_frame_and_no_copy() -> None:
    frames = [bytearray(frame) for frame in EXAMPLES["Result"].frames()]
    received = decode(frames)
    frames[2][0] ^= 0xFF
    assert received.tensors["latent"].data[0] == frames[2][0]


def test_an_encoded_tensor_is_its_memory_and_no_copy() -> None:
    memory = bytearray(240)
    frames = encode(
        EXAMPLES["Result"].message,
        {name: WireTensor(dtype="F32", shape=(1, 4, 3, 5), data=memory) for name in ("latent", "x0")},
    )
    memory[0] = 7
    assert frames[2][0] == 7


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, zmq.Frame, lambda data: array.array("B", data)])
def test_frames_may_be_anything_with_the_buffer_protocol(kind: type) -> None:
    for name, example in EXAMPLES.items():
        received = decode([kind(frame) for frame in example.frames()])
        assert received.message == example.message, name
        assert {part: bytes(tensor.data) for part, tensor in received.tensors.items()} == {
            part: tensor.data for part, tensor in example.tensors.items()
        }
        assert received.manifest == example.manifest


def test_a_frame_of_the_transport_stays_behind_its_tensor() -> None:
    """The broker passes tensors on as the transport's own messages: it must find them again."""
    frames = [zmq.Frame(frame) for frame in EXAMPLES["Result"].frames()]
    received = decode(frames)
    assert received.tensors["latent"].data.obj is frames[2]
    again = encode(received.message, received.tensors)
    assert again[2].obj is frames[2]


def test_tensor_memory_may_have_any_element_type_and_shape() -> None:
    floats = array.array("f", range(60))
    plain = memoryview(floats).cast("B")
    for data in (
        floats,
        memoryview(floats),
        plain.cast("f", [1, 4, 3, 5]),
        memoryview(b"".join(struct.pack("f", i) for i in range(60))),
    ):
        sent = WireTensor(dtype="F32", shape=(1, 4, 3, 5), data=data)
        received = decode(encode(EXAMPLES["Result"].message, {"latent": sent, "x0": sent}))
        assert received.tensors["latent"].data == plain


def test_empty_memory_of_any_shape_is_an_empty_frame() -> None:
    sent = WireTensor(dtype="F32", shape=(0,), data=memoryview(array.array("f")))
    assert bytes(decode(encode(UPLOAD, {"x": sent})).tensors["x"].data) == b""


@pytest.mark.parametrize("frame", ["TUTTI\x01\x00\x00", None, 8, [84], object()], ids=repr)
def test_a_frame_that_is_no_buffer_is_our_own_mistake(frame: object) -> None:
    good = EXAMPLES["Result"].frames()
    for place in range(len(good)):
        with pytest.raises(TypeError):
            decode([*good[:place], frame, *good[place + 1 :]])
    sent = WireTensor(dtype="F32", shape=(1, 4, 3, 5), data=frame)
    with pytest.raises(TypeError):
        encode(EXAMPLES["Result"].message, {"latent": sent, "x0": sent})


def test_memory_that_is_not_dense_is_our_own_mistake() -> None:
    strided = memoryview(bytearray(480))[::2]
    sent = WireTensor(dtype="F32", shape=(1, 4, 3, 5), data=strided)
    with pytest.raises(TypeError):
        encode(EXAMPLES["Result"].message, {"latent": sent, "x0": sent})
    with pytest.raises(TypeError):
        decode([*EXAMPLES["Result"].frames()[:3], strided])


def test_memory_that_does_not_fit_its_shape_is_never_sent() -> None:
    sent = WireTensor(dtype="F32", shape=(1, 4, 3, 5), data=bytes(236))
    with pytest.raises(LocalProtocolError, match="latent: 236 bytes, its shape says 240"):
        encode(EXAMPLES["Result"].message, {"latent": sent, "x0": sent})
