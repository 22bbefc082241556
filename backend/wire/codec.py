"""Messages to frames and back.

    [ "TUTTI" major minor 0 ] [ header: msgpack, <= 64 KiB ] [ manifest: msgpack, <= 4 MiB, only if announced ] [ tensor
    bytes ] ...

:func:`decode` takes nothing on trust: any bytes give a message or raise :class:`~..errors.RemoteProtocolError`, and
every size is compared with the header before the bytes are looked at. Tensors are never copied: a decoded tensor's
``data`` is its frame's memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from ..errors import LocalProtocolError, RemoteProtocolError, VersionMismatch
from . import limits, rules
from .cursor import UNREADABLE, Cursor
from .manifest import decode_manifest, encode_manifest
from .messages import MESSAGES, ManifestEntry, Message
from .schema import SchemaError, read, write
from .tensors import TensorSpec, WireTensor, flat_bytes, read_specs, write_specs

__all__ = [
    "MAGIC",
    "MAJOR",
    "MINOR",
    "PREAMBLE",
    "Frame",
    "Received",
    "decode",
    "decode_manifest",
    "encode",
    "encode_manifest",
]

MAGIC: Final = b"TUTTI"
MAJOR: Final = 1
MINOR: Final = 0
PREAMBLE: Final = MAGIC + bytes((MAJOR, MINOR, 0))
"""First frame of every message: magic, major, minor, a spare zero."""

_HEADER_KEYS: Final = ("type", "body", "tensors", "manifest")  # in this order: the type tells how to read the body

_MOST_FRAMES: Final = 3 + limits.TENSOR_FRAMES  # preamble, header, manifest

Frame = Any
"""Anything with the buffer protocol: bytes, memoryview, a zmq frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A decoded message with what travelled beside it."""

    message: Message
    tensors: dict[str, WireTensor] = field(default_factory=dict)
    manifest: tuple[ManifestEntry, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Header:
    message: Message
    specs: tuple[TensorSpec, ...]
    has_manifest: bool


def encode(
    message: Message,
    tensors: Mapping[str, WireTensor] | None = None,
    manifest: Sequence[ManifestEntry] | None = None,
) -> list[Frame]:
    """A message as frames, ready for ``send_multipart(frames, copy=False)``. Equal messages give equal bytes.

    Raises:
        LocalProtocolError: the message breaks its schema, a rule or a limit; the peer would refuse it.
        TypeError: a tensor's ``data`` is not a buffer, or not a dense one.
    """
    tensors = dict(sorted(tensors.items())) if tensors else {}
    try:
        frames: list[Frame] = [PREAMBLE, _pack_header(message, tensors, manifest is not None)]
        data = [_frame_of(name, tensor) for name, tensor in tensors.items()]
        rules.check(message, tensors, has_manifest=manifest is not None)
    except (SchemaError, UnicodeEncodeError) as error:
        raise LocalProtocolError(f"this {type(message).__name__} is not a legal message: {error}") from error
    if manifest is not None:
        frames.append(encode_manifest(manifest))
    return frames + data


def _pack_header(message: Message, tensors: Mapping[str, WireTensor], has_manifest: bool) -> bytes:
    name = type(message).__name__
    if MESSAGES.get(name) is not type(message):
        raise SchemaError("no message of the protocol")
    rows = write_specs([tensor.spec(name) for name, tensor in tensors.items()])
    packed: bytes = msgpack.packb(dict(zip(_HEADER_KEYS, (name, write(message), rows, has_manifest), strict=True)))
    if len(packed) > limits.HEADER_BYTES:
        raise SchemaError(f"the header has {len(packed)} bytes, at most {limits.HEADER_BYTES} are allowed")
    return packed


def _frame_of(name: str, tensor: WireTensor) -> bytes | memoryview:
    data, size = flat_bytes(tensor.data), tensor.spec(name).size_bytes
    if len(data) != size:
        raise SchemaError(f"{len(data)} bytes, its shape says {size}", name)
    return data


def decode(frames: Sequence[Frame]) -> Received:
    """Frames as a message. ``frames`` excludes any routing identity.

    Raises:
        VersionMismatch: the peer speaks another major version.
        RemoteProtocolError: anything else that is not a legal message.
        TypeError: a frame is not a dense buffer: a mistake on this side. Bytes never raise anything but the other two.
    """
    if not 2 <= len(frames) <= _MOST_FRAMES:
        raise RemoteProtocolError(f"a message has 2 to {_MOST_FRAMES} frames, got {len(frames)}")
    views = [flat_bytes(frame) for frame in frames]
    minor = _check_preamble(views[0])
    try:
        header = _unpack_header(views[1], lenient=minor > MINOR)
        tensors = _tensors(header, views[2:])
        rules.check(header.message, tensors, has_manifest=header.has_manifest)
    except SchemaError as error:
        raise RemoteProtocolError(str(error)) from error
    except UNREADABLE as error:
        raise RemoteProtocolError(f"the header is not readable ({type(error).__name__})") from error
    manifest = decode_manifest(views[2]) if header.has_manifest else None
    return Received(message=header.message, tensors=tensors, manifest=manifest)


def _check_preamble(frame: bytes | memoryview) -> int:
    """The peer's minor version."""
    if len(frame) != len(PREAMBLE) or bytes(frame[: len(MAGIC)]) != MAGIC:
        raise RemoteProtocolError("this is not a message of Tutti: the first frame is not its preamble")
    major, minor, spare = frame[len(MAGIC) :]
    if major != MAJOR:
        raise VersionMismatch(
            "Install the same version of Tutti on both sides: "
            f"this side speaks protocol {MAJOR}.{MINOR}, the other {major}.{minor}."
        )
    if spare != 0:
        raise RemoteProtocolError(f"the spare byte of the preamble is {spare}, not 0")
    return minor


def _unpack_header(frame: bytes | memoryview, *, lenient: bool) -> _Header:
    if len(frame) > limits.HEADER_BYTES:
        raise SchemaError(f"the header has {len(frame)} bytes, at most {limits.HEADER_BYTES} are allowed")
    cursor = Cursor(frame, string_bytes=limits.STRING_BYTES, container_length=limits.ARRAY_LENGTH, lenient=lenient)
    more = cursor.map_length() - len(_HEADER_KEYS)
    if not 0 <= more <= (limits.MAP_LENGTH if lenient else 0):
        raise SchemaError(f"the header is not a map of {', '.join(_HEADER_KEYS)}")
    message = _read_message(_after("type", cursor).scalar(), _after("body", cursor))
    specs = read_specs(_after("tensors", cursor))
    has_manifest = _after("manifest", cursor).scalar()
    if type(has_manifest) is not bool:
        raise SchemaError("expected true or false", "manifest")
    for _ in range(2 * more):
        cursor.skip()
    if not cursor.at_end():
        raise SchemaError("bytes follow the header's map")
    return _Header(message, specs, has_manifest)


def _after(key: str, cursor: Cursor) -> Cursor:
    found = cursor.scalar()
    if type(found) is not str or found != key:
        raise SchemaError(f"the header is not a map of {', '.join(_HEADER_KEYS)}, in this order")
    return cursor


def _read_message(name: Any, cursor: Cursor) -> Message:
    cls = MESSAGES.get(name) if type(name) is str else None
    if cls is None:
        raise SchemaError(f"unknown message type {str(name)[:64]!r}")
    try:
        message: Message = read(cls, cursor)
    except SchemaError as error:
        error.within(cls.__name__)
        raise
    return message


def _tensors(header: _Header, rest: Sequence[bytes | memoryview]) -> dict[str, WireTensor]:
    expected = header.has_manifest + len(header.specs)
    if len(rest) != expected:
        raise SchemaError(f"{len(rest)} frames follow the header, it announces {expected}")
    frames = rest[1:] if header.has_manifest else rest
    for spec, frame in zip(header.specs, frames, strict=True):
        if len(frame) != spec.size_bytes:
            raise SchemaError(f"the frame has {len(frame)} bytes, its shape says {spec.size_bytes}", spec.name)
    return {
        spec.name: WireTensor(dtype=spec.dtype, shape=spec.shape, data=frame)
        for spec, frame in zip(header.specs, frames, strict=True)
    }
