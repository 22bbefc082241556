"""Any checkpoint file by its path: one safetensors file, a set of shards, or GGUF."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ..errors import BadCheckpoint
from .entries import FileHeader
from .gguf_header import SUFFIX as GGUF
from .gguf_header import read_gguf_header
from .quantised import entries_of
from .safetensors_header import RawHeader, read_raw_header

SAFETENSORS: Final = (".safetensors", ".sft")
SUFFIXES: Final = (*SAFETENSORS, GGUF)
"""Endings of files that may be checkpoints, in lower case."""
_SHARD: Final = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors)", re.IGNORECASE
)
_MOST_SHARDS: Final = 512


def read_header(path: Path) -> FileHeader:
    """Names, shapes and kinds of a checkpoint's weights.

    Raises:
        BadCheckpoint: the file (or one of its shards) is missing, damaged, or in a format that we do not read.
    """
    if path.is_dir():
        raise BadCheckpoint("Choose a single checkpoint file: a folder cannot be loaded.")
    suffix = path.suffix.lower()
    if suffix == GGUF:
        return read_gguf_header(path)
    if suffix not in SAFETENSORS:
        raise BadCheckpoint(
            f"Convert the checkpoint to .safetensors: {path.suffix[:16] or 'a file without an ending'} is not read."
        )
    return _joined([read_raw_header(shard) for shard in shards_of(path)])


def shards_of(path: Path) -> Sequence[Path]:
    """The files that belong together with this one, in order: itself, if its name does not say that it is one of several.

    Raises:
        BadCheckpoint: one is missing.
    """
    found = _SHARD.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["count"])
    if not 1 <= count <= _MOST_SHARDS:
        raise BadCheckpoint(f"Choose another checkpoint: its name says that it has {count} parts.")
    shards = [
        path.with_name(f"{found['stem']}-{number:05}-of-{count:05}{found['suffix']}") for number in range(1, count + 1)
    ]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise BadCheckpoint(
            f"Download the rest of the checkpoint: {len(missing)} of its {count} parts are missing, {missing[0][:80]} first."
        )
    return shards


def is_later_shard(name: str) -> bool:
    """Whether a file is a part of a checkpoint that its first part stands for."""
    found = _SHARD.fullmatch(name)
    return found is not None and int(found["number"]) != 1


def raw_files(path: Path) -> Mapping[str, Path]:
    """Tensor -> the file that holds it, of a safetensors checkpoint. Raises ``BadCheckpoint``."""
    return {name: header.path for header in map(read_raw_header, shards_of(path)) for name in header.tensors}


def _joined(headers: Sequence[RawHeader]) -> FileHeader:
    holder = {name: header for header in headers for name in header.tensors}
    if len(holder) != sum(len(header.tensors) for header in headers):
        raise BadCheckpoint("Choose another checkpoint: several of its parts hold the same tensor.")
    metadata = {key: value for header in headers for key, value in header.metadata.items()}
    tensors = {name: header.tensors[name] for name, header in holder.items()}
    digest = hashlib.blake2b("".join(header.digest for header in headers).encode(), digest_size=16).hexdigest()
    return FileHeader(
        entries=entries_of(tensors, metadata, lambda name: holder[name].read(name)),
        metadata=metadata,
        digest=headers[0].digest if len(headers) == 1 else digest,
        size_bytes=sum(header.size_bytes for header in headers),
    )
