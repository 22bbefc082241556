"""Messages to frames and back.

    [ "TUTTI" major minor 0 ] [ header: msgpack, <= 64 KiB ] [ manifest: msgpack, <= 4 MiB, only if announced ] [ tensor bytes ] ...

:func:`decode` takes nothing on trust: any list of frames gives a message or raises :class:`~..errors.RemoteProtocolError`, and every
size is compared with the header before the bytes are looked at. Frames are never copied: a decoded tensor's ``data`` is the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from ..errors import LocalProtocolError, RemoteProtocolError, VersionMismatch
from . import limits
from .messages import MESSAGES, ManifestEntry, Message
from .schema import SchemaError, pack, unpack
from .tensors import TensorSpec, WireTensor, check_specs

MAGIC: Final = b"TUTTI"
MAJOR: Final = 1
MINOR: Final = 0
PREAMBLE: Final = MAGIC + bytes((MAJOR, MINOR, 0))
"""First frame of every message: magic, major, minor, a spare zero."""

Frame = Any
"""Anything with the buffer protocol: bytes, memoryview, the buffer of a zmq frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A decoded message with what travelled beside it."""

    message: Message
    tensors: dict[str, WireTensor] = field(default_factory=dict)
    manifest: tuple[ManifestEntry, ...] | None = None


def encode(
    message: Message, tensors: Mapping[str, WireTensor] | None = None, manifest: Sequence[ManifestEntry] | None = None
) -> list[Frame]:
    """A message as frames, ready for ``send_multipart(frames, copy=False)``.

    Raises:
        LocalProtocolError: the message breaks its own schema or a limit; the peer would refuse it.
    """
    tensors = tensors or {}
    specs = tuple(tensor.spec(name) for name, tensor in tensors.items())
    header = {
        "type": type(message).__name__,
        "body": pack(message),
        "tensors": [[spec.name, spec.dtype, list(spec.shape)] for spec in specs],
        "manifest": manifest is not None,
    }
    packed = msgpack.packb(header)
    try:
        _check_outgoing(header, packed, specs, tensors)
    except SchemaError as error:
        raise LocalProtocolError(f"this {type(message).__name__} is not a legal message: {error}") from error
    frames: list[Frame] = [PREAMBLE, packed]
    if manifest is not None:
        frames.append(encode_manifest(manifest))
    frames.extend(tensors[spec.name].data for spec in specs)
    return frames


def _check_outgoing(
    header: dict[str, Any], packed: bytes, specs: tuple[TensorSpec, ...], tensors: Mapping[str, WireTensor]
) -> None:
    if len(packed) > limits.HEADER_BYTES:
        raise SchemaError(f"the header has {len(packed)} bytes, at most {limits.HEADER_BYTES} are allowed")
    unpack(MESSAGES[header["type"]], header["body"])
    check_specs(_specs(header["tensors"]))
    for spec in specs:
        if _size(tensors[spec.name].data) != spec.size_bytes:
            raise SchemaError(f"tensor {spec.name} has {_size(tensors[spec.name].data)} bytes, its shape says {spec.size_bytes}")


def decode(frames: Sequence[Frame]) -> Received:
    """Frames as a message. ``frames`` excludes any routing identity.

    Raises:
        VersionMismatch: the peer speaks another major version.
        RemoteProtocolError: anything else that is not a legal message. Nothing else is ever raised.
    """
    if len(frames) < 2:
        raise RemoteProtocolError(f"a message has at least 2 frames, got {len(frames)}")
    minor = _check_preamble(frames[0])
    header = _unpack_header(frames[1])
    try:
        return _decode_body(header, frames[2:], lenient=minor > MINOR)
    except SchemaError as error:
        raise RemoteProtocolError(str(error)) from error


def _check_preamble(frame: Frame) -> int:
    if _size(frame) != len(PREAMBLE) or bytes(frame)[: len(MAGIC)] != MAGIC:
        raise RemoteProtocolError("this is not a message of Tutti: the first frame is not its preamble")
    major, minor, spare = bytes(frame)[len(MAGIC) :]
    if major != MAJOR:
        raise VersionMismatch(
            f"Install the same version of Tutti on both sides: this side speaks protocol {MAJOR}.{MINOR}, the other {major}.{minor}."
        )
    if spare != 0:
        raise RemoteProtocolError(f"the spare byte of the preamble is {spare}, not 0")
    return minor


def _unpack_header(frame: Frame) -> dict[str, Any]:
    if _size(frame) > limits.HEADER_BYTES:
        raise RemoteProtocolError(f"the header has {_size(frame)} bytes, at most {limits.HEADER_BYTES} are allowed")
    header = _unpackb(frame, limits.ARRAY_LENGTH, limits.MAP_LENGTH, limits.STRING_BYTES)
    if type(header) is not dict or set(header) != {"type", "body", "tensors", "manifest"}:
        raise RemoteProtocolError("the header is not a map of type, body, tensors and manifest")
    return header


def _unpackb(frame: Frame, array_length: int, map_length: int, string_bytes: int) -> Any:
    """msgpack with every limit explicit. It raises a dozen different exceptions on bad bytes; they all mean the same."""
    try:
        return msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            max_array_len=array_length,
            max_map_len=map_length,
            max_str_len=string_bytes,
            max_bin_len=limits.BINARY_BYTES,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"not readable as msgpack ({type(error).__name__})") from error


def _decode_body(header: dict[str, Any], rest: Sequence[Frame], *, lenient: bool) -> Received:
    cls = MESSAGES.get(header["type"]) if type(header["type"]) is str else None
    if cls is None:
        raise SchemaError(f"unknown message type {str(header['type'])[:64]!r}")
    if type(header["manifest"]) is not bool:
        raise SchemaError("manifest: expected true or false")
    message = unpack(cls, header["body"], lenient=lenient)
    specs = _specs(header["tensors"])
    check_specs(specs)
    expected = len(specs) + header["manifest"]
    if len(rest) != expected:
        raise SchemaError(f"{len(rest)} frames follow the header, it announces {expected}")
    manifest = decode_manifest(rest[0]) if header["manifest"] else None
    frames = rest[1:] if header["manifest"] else rest
    tensors = {spec.name: _tensor(spec, frame) for spec, frame in zip(specs, frames, strict=True)}
    return Received(message=message, tensors=tensors, manifest=manifest)


def _specs(rows: Any) -> tuple[TensorSpec, ...]:
    if type(rows) is not list:
        raise SchemaError("tensors: expected an array")
    specs = []
    for index, row in enumerate(rows):
        if type(row) is not list or len(row) != 3:
            raise SchemaError(f"tensors[{index}]: expected name, dtype and shape")
        specs.append(unpack(TensorSpec, dict(zip(("name", "dtype", "shape"), row, strict=True)), where=f"tensors[{index}]"))
    return tuple(specs)


def _tensor(spec: TensorSpec, frame: Frame) -> WireTensor:
    if _size(frame) != spec.size_bytes:
        raise SchemaError(f"tensor {spec.name}: the frame has {_size(frame)} bytes, its shape says {spec.size_bytes}")
    return WireTensor(dtype=spec.dtype, shape=spec.shape, data=frame)


def encode_manifest(entries: Sequence[ManifestEntry]) -> bytes:
    """A manifest frame.

    Raises:
        LocalProtocolError: more entries or bytes than a manifest may have.
    """
    packed: bytes = msgpack.packb([[entry.name, entry.kind, list(entry.numbers)] for entry in entries])
    if len(entries) > limits.MANIFEST_ENTRIES or len(packed) > limits.MANIFEST_BYTES:
        raise LocalProtocolError(
            f"a manifest of {len(entries)} entries and {len(packed)} bytes is too large: "
            f"at most {limits.MANIFEST_ENTRIES} entries and {limits.MANIFEST_BYTES} bytes are allowed"
        )
    return packed


def decode_manifest(frame: Frame) -> tuple[ManifestEntry, ...]:
    """The entries of a manifest frame.

    Raises:
        RemoteProtocolError: it is not one.
    """
    if _size(frame) > limits.MANIFEST_BYTES:
        raise RemoteProtocolError(f"the manifest has {_size(frame)} bytes, at most {limits.MANIFEST_BYTES} are allowed")
    rows = _unpackb(frame, limits.MANIFEST_ENTRIES, 0, limits.NAME_LENGTH * 4)
    if type(rows) is not list:
        raise RemoteProtocolError("the manifest is not an array")
    entries = []
    try:
        for row in rows:
            if type(row) is not list or len(row) != 3:
                raise SchemaError("a manifest entry is a name, a kind and numbers")
            entries.append(unpack(ManifestEntry, dict(zip(("name", "kind", "numbers"), row, strict=True))))
    except SchemaError as error:
        raise RemoteProtocolError(f"manifest: {error}") from error
    return tuple(entries)


def _size(frame: Frame) -> int:
    return len(frame) if isinstance(frame, bytes) else memoryview(frame).nbytes
