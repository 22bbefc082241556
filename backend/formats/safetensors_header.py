"""The header of a safetensors file, read with the standard library."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import BadCheckpoint
from .entries import RawTensor

LARGEST_HEADER_BYTES = 32 * 1024**2
MOST_TENSORS = 16_384
NAME_LENGTH = 512
DIMS = 8
_UNREADABLE = "Make the checkpoint readable for the daemon's user: it cannot be opened."
_DAMAGED = "Download the checkpoint again: a tensor's description is damaged."


@dataclass(frozen=True, slots=True, kw_only=True)
class RawHeader:
    """One file's tensors and metadata."""

    path: Path
    tensors: Mapping[str, RawTensor]
    metadata: Mapping[str, str]
    digest: str
    size_bytes: int

    def read(self, name: str) -> bytes:
        """The bytes of one tensor: for the small ones that describe others. Raises ``BadCheckpoint``."""
        tensor = self.tensors[name]
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.begin)
                return file.read(tensor.end - tensor.begin)
        except OSError as error:
            raise BadCheckpoint(_UNREADABLE) from error


def read_raw_header(path: Path) -> RawHeader:
    """Read and check the header of a file.

    Raises:
        BadCheckpoint: it is no safetensors file, or not a whole one, or cannot be opened.
    """
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            raw, start = _header_bytes(file, size_bytes)
    except FileNotFoundError as error:
        raise BadCheckpoint("Put the checkpoint back or choose another one: the file is gone.") from error
    except OSError as error:
        raise BadCheckpoint(_UNREADABLE) from error
    header = _parsed(raw)
    metadata = header.pop("__metadata__", {})
    if len(header) > MOST_TENSORS:
        raise BadCheckpoint(
            f"Use another checkpoint: this one has {len(header)} tensors, {MOST_TENSORS} can be handled."
        )
    return RawHeader(
        path=path,
        tensors={name: _tensor(name, row, start, size_bytes) for name, row in header.items()},
        metadata=_texts(metadata),
        digest=hashlib.blake2b(raw, digest_size=16).hexdigest(),
        size_bytes=size_bytes,
    )


def _header_bytes(file: BinaryIO, size_bytes: int) -> tuple[bytes, int]:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(LARGEST_HEADER_BYTES, size_bytes - 8):
        raise BadCheckpoint("Use a safetensors file: this one does not begin like one, or is cut off in its header.")
    return file.read(length), 8 + length


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint("Download the checkpoint again: its header is not readable.") from error
    if type(header) is not dict:
        raise BadCheckpoint("Download the checkpoint again: its header is no table of tensors.")
    return header


def _tensor(name: str, row: Any, start: int, size_bytes: int) -> RawTensor:
    try:
        dtype, shape, (begin, end) = row["dtype"], row["shape"], row["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise BadCheckpoint(_DAMAGED) from error
    whole = all(type(number) is int and number >= 0 for number in numbers) and type(dtype) is str
    if not whole or len(dtype) > 32 or len(shape) > DIMS or len(name) > NAME_LENGTH or math.prod(shape) >= 2**62:
        raise BadCheckpoint(_DAMAGED)
    if not begin <= end <= size_bytes - start:
        raise BadCheckpoint("Download the checkpoint again: the file is shorter than its header says.")
    return RawTensor(kind=dtype, shape=tuple(shape), begin=start + begin, end=start + end)


def _texts(metadata: Any) -> dict[str, str]:
    if type(metadata) is not dict:
        return {}
    return {key: value for key, value in metadata.items() if type(value) is str}
