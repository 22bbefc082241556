"""Every bound of the wire: what just fits is sent and read, one more is refused by the sender and by the reader."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace

import pytest
from tutti.backend.errors import LocalProtocolError, RemoteProtocolError
from tutti.backend.wire import codec, limits
from tutti.backend.wire import messages as m
from tutti.backend.wire.codec import decode, encode
from tutti.backend.wire.manifest import decode_manifest, encode_manifest
from tutti.backend.wire.tensors import WireTensor

from tests.wire.examples import DIGEST, EVALUATE, EVALUATE_TENSORS, EXAMPLES, JOB, SAMPLE, SAMPLE_TENSORS, tensor
from tests.wire.raw import Node, Pairs, edited, headed, pack, put

UPLOAD = m.Upload(job_id=JOB, digest=DIGEST)
ENTRY = m.ManifestEntry(name="img_in.weight", kind="BF16", numbers=(3072, 64))
HELLO = EXAMPLES["Hello"].message


def refused_by_the_sender(message: m.Message, tensors: dict[str, WireTensor], says: str) -> None:
    with pytest.raises(LocalProtocolError, match=says):
        encode(message, tensors)


def refused_by_the_reader(frames: list[bytes], says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=says):
        decode(frames)


def with_body(name: str, path: str, value: Node) -> list[bytes]:
    """An example whose body has another value at ``path``."""
    return edited(name, lambda tree: put(tree, ["body", *path.split(".")], value))


def zeros(dtype: str, *shape: int) -> WireTensor:
    """A tensor of any size that takes no memory: pages of an anonymous mapping that nobody touches."""
    template = WireTensor(dtype=dtype, shape=shape, data=b"")  # type: ignore[arg-type]
    return replace(template, data=memoryview(mmap.mmap(-1, max(template.spec("x").size_bytes, 1))))


# --- The header -------------------------------------------------------------------------------------------------------


def _described(header_bytes: int) -> list[bytes]:
    """A Described whose header has exactly so many bytes, without asking ``encode``."""
    frames = EXAMPLES["Described"].frames()
    texts = [f"t{i}" for i in range(16)]
    fill = "x" * 4_000

    def edit(last: str) -> Callable[[Node], None]:
        return lambda tree: put(tree, ["body", "metadata"], Pairs([(text, fill) for text in texts] + [("last", last)]))

    short = edited("Described", edit("x" * 300))[1]
    return [frames[0], edited("Described", edit("x" * (300 + header_bytes - len(short))))[1], frames[2]]


def test_a_header_of_64_kib_is_read() -> None:
    frames = _described(limits.HEADER_BYTES)
    assert len(frames[1]) == limits.HEADER_BYTES
    assert isinstance(decode(frames).message, m.Described)


def test_a_header_of_one_byte_more_is_refused() -> None:
    refused_by_the_reader(_described(limits.HEADER_BYTES + 1), "the header has 65537 bytes, at most 65536")
    large = replace(EXAMPLES["Described"].message, metadata={f"t{i}": "x" * 4_000 for i in range(17)})
    with pytest.raises(LocalProtocolError, match=r"the header has [0-9]+ bytes, at most 65536"):
        encode(large, manifest=())


def test_a_name_has_at_most_512_characters() -> None:
    for length, fits in ((limits.NAME_LENGTH, True), (limits.NAME_LENGTH + 1, False)):
        message = m.Describe(request=1, model="é" * length)
        if fits:
            assert decode(encode(message)).message == message
        else:
            refused_by_the_sender(message, {}, "model: 513 characters, at most 512")
            refused_by_the_reader(with_body("Describe", "model", message.model), "513 characters, at most 512")


def test_a_text_has_at_most_4096_characters() -> None:
    fitting = replace(HELLO, software="é" * limits.TEXT_LENGTH)
    assert decode(encode(fitting)).message == fitting
    refused_by_the_sender(replace(HELLO, software="é" * (limits.TEXT_LENGTH + 1)), {}, "4097 characters, at most 4096")
    refused_by_the_reader(with_body("Hello", "software", "é" * (limits.TEXT_LENGTH + 1)), "4097 characters, at most")


def test_the_name_of_an_option_has_at_most_64_characters() -> None:
    def sample(length: int) -> m.Sample:
        positive, negative = SAMPLE.branches
        return replace(SAMPLE, branches=(replace(positive, options={"n" * length: 1}), negative))

    message = sample(limits.OPTION_NAME_LENGTH)
    assert decode(encode(message, SAMPLE_TENSORS)).message == message
    refused_by_the_sender(sample(limits.OPTION_NAME_LENGTH + 1), SAMPLE_TENSORS, "1 to 64 characters")


def test_a_map_has_at_most_64_options() -> None:
    described = EXAMPLES["Described"].message
    fitting = replace(described, metadata={str(i): i for i in range(limits.MAP_LENGTH)})
    assert decode(encode(fitting, manifest=())).message == fitting
    with pytest.raises(LocalProtocolError, match="a dict of at most 64 options"):
        encode(replace(described, metadata={str(i): i for i in range(limits.MAP_LENGTH + 1)}), manifest=())


def test_a_list_of_trajectories_to_forget_has_at_most_1024() -> None:
    prepare = EXAMPLES["Prepare"].message
    fitting = replace(prepare, forget=(JOB,) * limits.ARRAY_LENGTH)
    assert decode(encode(fitting)).message == fitting
    refused_by_the_sender(
        replace(prepare, forget=(JOB,) * (limits.ARRAY_LENGTH + 1)), {}, "1025 elements, at most 1024"
    )
    refused_by_the_reader(
        with_body("Prepare", "forget", [JOB] * (limits.ARRAY_LENGTH + 1)), "1025 elements, at most 1024"
    )


def test_a_status_lists_at_most_64_jobs_and_models() -> None:
    status = EXAMPLES["Status"].message
    job = status.jobs[0]
    fitting = replace(status, jobs=(job,) * limits.LISTED, resident=("flux",) * limits.LISTED)
    assert decode(encode(fitting)).message == fitting
    refused_by_the_sender(replace(status, jobs=(job,) * (limits.LISTED + 1)), {}, "jobs: 65 elements, at most 64")
    refused_by_the_sender(
        replace(status, resident=("",) * (limits.LISTED + 1)), {}, "resident: 65 elements, at most 64"
    )


def test_a_resident_model_has_a_name_as_long_as_any_model() -> None:
    message = replace(EXAMPLES["Done"].message, resident=("m" * limits.NAME_LENGTH,))
    assert decode(encode(message)).message == message


# --- Tensors ----------------------------------------------------------------------------------------------------------


def test_a_message_has_at_most_64_tensors() -> None:
    tensors = {f"t{i}": tensor("U8", 1) for i in range(limits.TENSOR_FRAMES)}
    assert len(decode(encode(UPLOAD, tensors)).tensors) == limits.TENSOR_FRAMES
    refused_by_the_sender(UPLOAD, tensors | {"more": tensor("U8", 1)}, "65 tensors, at most 64")
    rows = [[name, "U8", [1]] for name in (*tensors, "more")]
    refused_by_the_reader(edited("Upload", lambda tree: put(tree, ["tensors"], rows)), "65 tensors, at most 64")


def test_a_tensor_has_at_most_256_mib() -> None:
    fitting = {"x": zeros("U8", limits.TENSOR_BYTES)}
    assert decode(encode(UPLOAD, fitting)).tensors["x"].shape == (limits.TENSOR_BYTES,)
    refused_by_the_sender(UPLOAD, {"x": zeros("U8", limits.TENSOR_BYTES + 1)}, "x: 268435457 bytes, at most 268435456")


def test_the_tensors_of_a_message_have_at_most_512_mib_together() -> None:
    whole = zeros("BF16", limits.TENSOR_BYTES // 2)
    fitting = {"x": whole, "y": whole}
    assert set(decode(encode(UPLOAD, fitting)).tensors) == {"x", "y"}
    refused_by_the_sender(UPLOAD, fitting | {"z": tensor("U8", 1)}, "536870913 bytes of tensors, at most 536870912")
    rows = [["x", "U8", [2**28]], ["y", "U8", [2**28]], ["z", "U8", [1]]]
    refused_by_the_reader(edited("Upload", lambda tree: put(tree, ["tensors"], rows)), "536870913 bytes of tensors")


def test_a_tensor_has_at_most_six_dimensions() -> None:
    fitting = {"x": tensor("U8", *[1] * limits.TENSOR_DIMS)}
    assert decode(encode(UPLOAD, fitting)).tensors["x"].shape == (1,) * limits.TENSOR_DIMS
    refused_by_the_sender(UPLOAD, {"x": tensor("U8", *[1] * (limits.TENSOR_DIMS + 1))}, "7 elements, at most 6")


def test_a_dimension_has_at_most_31_bits() -> None:
    fitting = {"x": tensor("U8", limits.DIM_SIZE, 0)}
    assert decode(encode(UPLOAD, fitting)).tensors["x"].shape == (limits.DIM_SIZE, 0)
    refused_by_the_sender(
        UPLOAD, {"x": tensor("U8", limits.DIM_SIZE + 1, 0)}, "2147483648 is not within 0 to 2147483647"
    )


def test_a_trajectory_has_at_most_10001_sigmas() -> None:
    fitting = SAMPLE_TENSORS | {"sigmas": tensor("F32", limits.SIGMAS)}
    assert decode(encode(SAMPLE, fitting)).tensors["sigmas"].shape == (limits.SIGMAS,)
    refused_by_the_sender(
        SAMPLE, SAMPLE_TENSORS | {"sigmas": tensor("F32", limits.SIGMAS + 1)}, "is not a row of 1 to 10001"
    )


def test_a_latent_has_three_dimensions_or_more() -> None:
    def sample(*shape: int) -> dict[str, WireTensor]:
        return {"noise": tensor("F32", *shape), "sigmas": tensor("F32", 2)}

    assert decode(encode(SAMPLE, sample(*[1] * limits.LATENT_DIMS))).tensors["noise"].shape == (1, 1, 1)
    assert decode(encode(SAMPLE, sample(1, 16, 5, 8, 8))).tensors["noise"].shape == (1, 16, 5, 8, 8)  # video
    refused_by_the_sender(SAMPLE, sample(*[1] * (limits.LATENT_DIMS - 1)), "noise: .* is not batch, channels and")


def test_a_sample_has_at_most_8_branches() -> None:
    positive, negative = SAMPLE.branches
    fitting = replace(SAMPLE, branches=(positive,) * (limits.BRANCHES - 1) + (negative,))
    assert decode(encode(fitting, SAMPLE_TENSORS)).message == fitting
    refused_by_the_sender(replace(SAMPLE, branches=(positive,) * 9), SAMPLE_TENSORS, "branches: 9 elements, at most 8")


def test_an_evaluate_has_at_most_8_calls() -> None:
    call = EVALUATE.calls[0]
    x, timestep = EVALUATE_TENSORS["call.0.x"], EVALUATE_TENSORS["call.0.timestep"]
    tensors = {
        f"call.{i}.{name}": part for i in range(limits.BRANCHES) for name, part in (("x", x), ("timestep", timestep))
    }
    fitting = replace(EVALUATE, calls=(call,) * limits.BRANCHES)
    assert decode(encode(fitting, tensors)).message == fitting
    refused_by_the_sender(replace(EVALUATE, calls=(call,) * 9), tensors, "calls: 9 elements, at most 8")


# --- The manifest -----------------------------------------------------------------------------------------------------


def test_a_manifest_has_at_most_16384_entries() -> None:
    entries = (ENTRY,) * limits.MANIFEST_ENTRIES
    assert decode_manifest(encode_manifest(entries)) == entries
    with pytest.raises(LocalProtocolError, match="16385 entries, at most 16384"):
        encode_manifest((*entries, ENTRY))


def _manifest_of(size_bytes: int) -> bytes:
    """A legal manifest of exactly so many bytes: 3 for the array, 9 and the name for each row."""
    count, rest = divmod(size_bytes - 3, 509)
    names = [500] * (count - 1) + [(509 + rest) // 2 - 9, (510 + rest) // 2 - 9]
    return pack([["n" * name, "F32", []] for name in names])


def test_a_manifest_has_at_most_4_mib() -> None:
    fitting = _manifest_of(limits.MANIFEST_BYTES)
    assert len(fitting) == limits.MANIFEST_BYTES
    entries = decode_manifest(fitting)
    assert encode_manifest(entries) == fitting

    larger = _manifest_of(limits.MANIFEST_BYTES + 1)
    with pytest.raises(RemoteProtocolError, match="the manifest has 4194305 bytes, at most 4194304"):
        decode_manifest(larger)
    with pytest.raises(LocalProtocolError, match="bytes, at most 4194304"):
        encode_manifest((*entries, ENTRY))


def test_a_manifest_entry_has_at_most_8_numbers_and_a_kind_of_32_characters() -> None:
    fitting = m.ManifestEntry(name="x", kind="k" * limits.KIND_LENGTH, numbers=(1,) * limits.MANIFEST_NUMBERS)
    assert decode_manifest(encode_manifest([fitting])) == (fitting,)
    with pytest.raises(LocalProtocolError, match="33 characters, at most 32"):
        encode_manifest([replace(fitting, kind="k" * (limits.KIND_LENGTH + 1))])
    with pytest.raises(LocalProtocolError, match="9 elements, at most 8"):
        encode_manifest([replace(fitting, numbers=(1,) * (limits.MANIFEST_NUMBERS + 1))])


def test_a_message_has_at_most_67_frames() -> None:
    refused_by_the_reader(headed(b"", *[b""] * 66), "a message has 2 to 67 frames, got 68")
    assert codec._MOST_FRAMES == 3 + limits.TENSOR_FRAMES
