"""GGUF files: names, shapes and quantisation types, read with the standard library and bounded like every header that anybody may have written.

    "GGUF", version, number of tensors, number of entries        little endian
    entries: key, type, value                                    metadata; read over, but for shapes that GGUF cannot hold
    tensors: name, dimensions (innermost first), type, offset
    data, from the next multiple of the alignment on

(GGUF's specification, versions 2 and 3: ggml/docs/gguf.md.)
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import BadCheckpoint
from .entries import Entry, FileHeader
from .safetensors_header import DIMS, LARGEST_HEADER_BYTES, MOST_TENSORS, NAME_LENGTH

SUFFIX: Final = ".gguf"
BLOCKS: Final[Mapping[str, tuple[int, int]]] = {
    # Type -> values in a block, bytes of a block.
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
}  # fmt: skip
"""What we read."""
_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
}  # fmt: skip
_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MOST_ENTRIES: Final = 65_536
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value -> its bytes; 8 is a text, 9 an array."""
_TEXT, _ARRAY, _INT32 = 8, 9, 5
_SHAPE_KEY: Final = "comfy.gguf.orig_shape."
"""Where converters keep the shape of a tensor that GGUF cannot hold: it knows four dimensions only."""
_ALIGNMENT_KEY: Final = "general.alignment"
_CUT_OFF: Final = "Download the checkpoint again: it is no whole GGUF file."
_DAMAGED: Final = "Download the checkpoint again: a tensor's description is damaged."


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor and where its bytes lie."""

    entry: Entry
    begin: int
    """First byte, counted from the beginning of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """What the header says."""

    tensors: tuple[GgufTensor, ...]
    digest: str
    """Of the header's bytes."""
    size_bytes: int


def read_gguf_header(path: Path) -> FileHeader:
    """What a GGUF file holds. Raises ``BadCheckpoint`` like :func:`read_gguf`."""
    file = read_gguf(path)
    entries = tuple(tensor.entry for tensor in file.tensors)
    return FileHeader(entries=entries, metadata={}, digest=file.digest, size_bytes=file.size_bytes)


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header of a file.

    Raises:
        BadCheckpoint: it is no whole GGUF file, cannot be opened, or holds a type that we do not read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Reader(data), data)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        raise BadCheckpoint(
            "Put the checkpoint back, or make it readable: it cannot be opened, or is empty."
        ) from error


class _Reader:
    """A place in the header that moves forward and never beyond its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._end = min(len(data), LARGEST_HEADER_BYTES)
        self.place = 0

    def skip(self, size: int) -> int:
        """Go on by ``size`` bytes; returns where they began."""
        begin = self.place
        if size > self._end - begin:
            raise BadCheckpoint(_CUT_OFF)
        self.place += size
        return begin

    def number(self, kind: str) -> int:
        """One number of ``struct``'s kind."""
        begin = self.skip(struct.calcsize(kind))
        return int(struct.unpack_from(f"<{kind}", self._data, begin)[0])

    def text(self) -> str:
        """A text; what no UTF-8 is, is replaced."""
        size = self.number("Q")
        begin = self.skip(size)
        return self._data[begin : begin + min(size, NAME_LENGTH + 1)].decode("utf-8", "replace")


def _read(reader: _Reader, data: mmap.mmap) -> GgufFile:
    if data[: len(_MAGIC)] != _MAGIC:
        raise BadCheckpoint("Download the checkpoint again: it does not begin like a GGUF file.")
    reader.skip(len(_MAGIC))
    if reader.number("I") not in _VERSIONS:
        raise BadCheckpoint("Convert the checkpoint again: this version of GGUF is not read, 2 and 3 are.")
    tensor_count, entry_count = reader.number("Q"), reader.number("Q")
    if tensor_count > MOST_TENSORS or entry_count > _MOST_ENTRIES:
        raise BadCheckpoint(
            f"Use another checkpoint: this one has {tensor_count} tensors, {MOST_TENSORS} can be handled."
        )
    kept = dict(_entry(reader) for _ in range(entry_count))
    described = [_tensor(reader) for _ in range(tensor_count)]
    if len({name for name, *_ in described}) < tensor_count:
        raise BadCheckpoint("Convert the checkpoint again: it names a tensor twice.")
    alignment = kept.get(_ALIGNMENT_KEY) or 32
    if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment % 8:
        raise BadCheckpoint(_DAMAGED)
    start = -(-reader.place // alignment) * alignment
    return GgufFile(
        tensors=tuple(_placed(*row, kept, start, len(data)) for row in described),
        digest=hashlib.blake2b(data[: reader.place], digest_size=16).hexdigest(),
        size_bytes=len(data),
    )


def _entry(reader: _Reader) -> tuple[str, Any]:
    """An entry's key and, of those that we use, its value."""
    key, kind = reader.text(), reader.number("I")
    if key == _ALIGNMENT_KEY and kind in (4, _INT32):
        return key, reader.number("I")
    if key.startswith(_SHAPE_KEY) and kind == _ARRAY:
        return key, _sizes(reader)
    _skip_value(reader, kind)
    return key, None


def _sizes(reader: _Reader) -> tuple[int, ...]:
    kind, count = reader.number("I"), reader.number("Q")
    letter = {4: "I", _INT32: "i", 10: "Q", 11: "q"}.get(kind)
    if letter is None or count > DIMS:
        raise BadCheckpoint(_DAMAGED)
    return tuple(reader.number(letter) for _ in range(count))


def _skip_value(reader: _Reader, kind: int) -> None:
    if kind == _TEXT:
        reader.skip(reader.number("Q"))
    elif kind == _ARRAY:
        of, count = reader.number("I"), reader.number("Q")
        if of in _SIZES:
            reader.skip(_SIZES[of] * count)
        elif of == _TEXT:
            for _ in range(min(count, LARGEST_HEADER_BYTES)):  # each takes eight bytes at least: the end comes first
                reader.skip(reader.number("Q"))
        else:
            raise BadCheckpoint(_CUT_OFF)
    elif kind in _SIZES:
        reader.skip(_SIZES[kind])
    else:
        raise BadCheckpoint(_CUT_OFF)


def _tensor(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset into the data."""
    name, dims = reader.text(), reader.number("I")
    if dims > DIMS or not 0 < len(name) <= NAME_LENGTH:
        raise BadCheckpoint(_DAMAGED)
    shape = tuple(reader.number("Q") for _ in range(dims))[::-1]
    return name, shape, reader.number("I"), reader.number("Q")


def _placed(
    name: str, shape: tuple[int, ...], type_number: int, offset: int, kept: Mapping[str, Any], start: int, size_bytes: int
) -> GgufTensor:  # fmt: skip
    kind = _TYPES.get(type_number, str(type_number))
    if kind not in BLOCKS:
        raise BadCheckpoint(f"Choose a GGUF file of another type: {name} is {kind}, and {', '.join(BLOCKS)} are read.")
    block_size, block_bytes = BLOCKS[kind]
    count = math.prod(shape)
    shape = kept.get(f"{_SHAPE_KEY}{name}") or shape
    if (
        any(size < 0 for size in shape)
        or math.prod(shape) != count
        or count >= 2**62
        or count % block_size
        or offset % 8
    ):
        raise BadCheckpoint(_DAMAGED)
    if kind not in ("F32", "F16", "BF16") and (not shape or shape[0] == 0 or count // shape[0] % block_size):
        raise BadCheckpoint(f"Convert the checkpoint again: the rows of {name} are no whole blocks of {kind}.")
    stored_bytes = count // block_size * block_bytes
    if start + offset + stored_bytes > size_bytes:
        raise BadCheckpoint("Download the checkpoint again: the file is shorter than its header says.")
    return GgufTensor(entry=Entry(name=name, kind=kind, shape=shape, stored_bytes=stored_bytes), begin=start + offset)
