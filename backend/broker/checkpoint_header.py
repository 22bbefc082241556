"""The header of a safetensors file, read with the standard library: names, dtypes and shapes, no weights, no torch."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import BadCheckpoint
from ..wire.limits import MANIFEST_ENTRIES, MAP_LENGTH, NAME_LENGTH, TEXT_LENGTH
from ..wire.messages import ManifestEntry

LARGEST_HEADER_BYTES = 32 * 1024**2
METADATA_BYTES = 16 * 1024
"""How much of a checkpoint's own metadata is passed on."""
DIMS = 8


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """What a safetensors header says."""

    tensors: tuple[ManifestEntry, ...]
    metadata: dict[str, str | int | float | bool]
    digest: str


def read_header(file: BinaryIO, size_bytes: int) -> CheckpointHeader:
    """Read and check the header of an open file of ``size_bytes``.

    Raises:
        BadCheckpoint: it is no safetensors file, or not a whole one.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(LARGEST_HEADER_BYTES, size_bytes - 8):
        raise BadCheckpoint("Use a safetensors file: this one does not begin like one, or is cut off in its header.")
    raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint("Download the checkpoint again: its header is not readable.") from error
    if type(header) is not dict:
        raise BadCheckpoint("Download the checkpoint again: its header is no table of tensors.")
    metadata = header.pop("__metadata__", {})
    if len(header) > MANIFEST_ENTRIES:
        raise BadCheckpoint(
            f"Use another checkpoint: this one has {len(header)} tensors, {MANIFEST_ENTRIES} can be handled."
        )
    tensors = tuple(_entry(name, row, size_bytes - 8 - length) for name, row in header.items())
    return CheckpointHeader(tensors, _short_metadata(metadata), hashlib.blake2b(raw, digest_size=16).hexdigest())


def _entry(name: str, row: Any, data_bytes: int) -> ManifestEntry:
    try:
        dtype, shape, (begin, end) = row["dtype"], row["shape"], row["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise BadCheckpoint("Download the checkpoint again: a tensor's description is damaged.") from error
    whole = all(type(number) is int and number >= 0 for number in numbers) and type(dtype) is str
    if not whole or len(dtype) > 32 or len(shape) > DIMS or len(name) > NAME_LENGTH or math.prod(shape) >= 2**62:
        raise BadCheckpoint("Download the checkpoint again: a tensor's description is damaged.")
    if not begin <= end <= data_bytes:
        raise BadCheckpoint("Download the checkpoint again: the file is shorter than its header says.")
    return ManifestEntry(name=name, kind=dtype, numbers=tuple(shape))


def _short_metadata(metadata: Any) -> dict[str, str | int | float | bool]:
    """The entries that fit: short ones first, within the bounds of a message."""
    kept: dict[str, str | int | float | bool] = {}
    if type(metadata) is not dict:
        return kept
    texts = [(key, value) for key, value in metadata.items() if type(value) is str and 0 < len(key) <= 64]
    room = METADATA_BYTES
    for key, value in sorted(texts, key=lambda pair: len(pair[1])):
        need = len(key.encode("utf-8", "replace")) + len(value.encode("utf-8", "replace"))
        if len(kept) == MAP_LENGTH or len(value) > TEXT_LENGTH or need > room or not _is_encodable(key + value):
            continue
        kept[key], room = value, room - need
    return kept


def _is_encodable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
