"""GGUF files: names, shapes and quantisation types, with the gguf package."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from ..errors import BadCheckpoint
from .entries import Entry, FileHeader

SUFFIX: Final = ".gguf"
TYPES: Final = frozenset(
    {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
)
"""What we read."""
_MAGIC: Final = b"GGUF"
_SHAPE_KEY: Final = "comfy.gguf.orig_shape."
"""Where converters keep the shape of a tensor that GGUF cannot hold: it knows four dimensions only."""


def open_gguf(path: Path) -> Any:
    """A ``gguf.GGUFReader``: it maps the file, copy on write, so that torch may see its pages as tensors.

    Raises:
        BadCheckpoint: it is no GGUF file, or the package is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise BadCheckpoint(
            "Install the back end again (`python install.py backend`): the gguf package is missing."
        ) from error
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise BadCheckpoint("Put the checkpoint back, or make it readable: it cannot be opened.") from error
    if magic != _MAGIC:
        raise BadCheckpoint("Download the checkpoint again: it does not begin like a GGUF file.")
    try:
        return GGUFReader(path, "c")
    except Exception as error:  # the package raises whatever damaged bytes lead to
        raise BadCheckpoint("Download the checkpoint again: it is no whole GGUF file.") from error


def read_gguf_header(path: Path) -> FileHeader:
    """What a GGUF file holds.

    Raises:
        BadCheckpoint: it is no whole GGUF file, or holds a type that we do not read.
    """
    reader = open_gguf(path)
    entries = tuple(_entry(reader, tensor) for tensor in reader.tensors)
    digest = hashlib.blake2b(digest_size=16)
    for entry in entries:
        digest.update(f"{entry.name}|{entry.kind}|{entry.shape};".encode())
    return FileHeader(entries=entries, metadata={}, digest=digest.hexdigest(), size_bytes=path.stat().st_size)


def _entry(reader: Any, tensor: Any) -> Entry:
    kind = tensor.tensor_type.name
    if kind not in TYPES:
        known = ", ".join(sorted(TYPES))
        raise BadCheckpoint(f"Choose a GGUF file of another type: {tensor.name} is {kind}, and {known} are read.")
    kept = reader.get_field(f"{_SHAPE_KEY}{tensor.name}")
    # GGUF counts dimensions from the innermost.
    shape = tuple(kept.contents()) if kept is not None else tuple(int(size) for size in reversed(tensor.shape))
    return Entry(
        name=tensor.name, kind=kind, shape=tuple(int(size) for size in shape), stored_bytes=int(tensor.n_bytes)
    )
