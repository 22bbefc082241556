"""The manifest frame: a checkpoint's tensors, or the model files of a daemon, as one msgpack array of [name, kind,
numbers]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from ..errors import LocalProtocolError, RemoteProtocolError
from .cursor import UNREADABLE, Cursor
from .limits import KIND_LENGTH, MANIFEST_BYTES, MANIFEST_ENTRIES, NAME_LENGTH
from .messages import ManifestEntry
from .schema import SchemaError, kinds_of
from .tensors import flat_bytes

_STRING_BYTES = 4 * max(NAME_LENGTH, KIND_LENGTH)  # UTF-8 spends up to 4 bytes a character
_NAME, _KIND, _NUMBERS = kinds_of(ManifestEntry).values()


def encode_manifest(entries: Sequence[ManifestEntry]) -> bytes:
    """A manifest frame.

    Raises:
        LocalProtocolError: more entries or bytes than a manifest may have, or an entry out of its bounds.
    """
    if len(entries) > MANIFEST_ENTRIES:
        raise LocalProtocolError(f"a manifest of {len(entries)} entries, at most {MANIFEST_ENTRIES} are allowed")
    try:
        rows = [[_NAME.write(e.name), _KIND.write(e.kind), _NUMBERS.write(e.numbers)] for e in entries]
        packed: bytes = msgpack.packb(rows)
    except (SchemaError, UnicodeEncodeError) as error:
        raise LocalProtocolError(f"this is not a legal manifest: {error}") from error
    if len(packed) > MANIFEST_BYTES:
        raise LocalProtocolError(f"a manifest of {len(packed)} bytes, at most {MANIFEST_BYTES} are allowed")
    return packed


def decode_manifest(frame: Any) -> tuple[ManifestEntry, ...]:
    """The entries of a manifest frame. All are checked before the first is kept: a bad manifest costs one copy of it.

    Raises:
        RemoteProtocolError: it is not one.
    """
    data = flat_bytes(frame)
    if len(data) > MANIFEST_BYTES:
        raise RemoteProtocolError(f"the manifest has {len(data)} bytes, at most {MANIFEST_BYTES} are allowed")
    _check_rows(data)
    rows = msgpack.unpackb(
        data,
        raw=False,
        max_array_len=MANIFEST_ENTRIES,
        max_map_len=0,
        max_str_len=_STRING_BYTES,
        max_bin_len=0,
        max_ext_len=0,
    )
    return tuple([ManifestEntry(name=name, kind=kind, numbers=tuple(numbers)) for name, kind, numbers in rows])


def _check_rows(data: bytes | memoryview) -> None:
    cursor = Cursor(data, string_bytes=_STRING_BYTES, container_length=MANIFEST_ENTRIES)
    done = 0
    try:
        count = cursor.array_length()
        if count > MANIFEST_ENTRIES:
            raise SchemaError(f"{count} entries, at most {MANIFEST_ENTRIES} are allowed")
        while done < count:
            _check_row(cursor)
            done += 1
        if not cursor.at_end():
            raise SchemaError("bytes follow the last entry")
    except (SchemaError, *UNREADABLE) as error:
        what = str(error) if isinstance(error, SchemaError) else type(error).__name__
        raise RemoteProtocolError(f"manifest, entry {done}: {what}") from error


def _check_row(cursor: Cursor) -> None:
    if cursor.array_length() != 3:
        raise SchemaError("an entry is a name, a kind and numbers")
    _NAME.read(cursor)
    _KIND.read(cursor)
    _NUMBERS.read(cursor)
