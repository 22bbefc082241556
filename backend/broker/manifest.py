"""A checkpoint's header as it is told to clients: within the bounds of a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..formats.entries import FileHeader
from ..wire.limits import MAP_LENGTH, TEXT_LENGTH
from ..wire.messages import ManifestEntry

METADATA_BYTES = 16 * 1024
"""How much of a checkpoint's own metadata is passed on."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a client hears about a checkpoint."""

    tensors: tuple[ManifestEntry, ...]
    metadata: dict[str, str | int | float | bool]
    digest: str


def manifest_of(header: FileHeader) -> Manifest:
    """The header in the wire's words."""
    tensors = tuple(ManifestEntry(name=entry.name, kind=entry.kind, numbers=entry.shape) for entry in header.entries)
    return Manifest(tensors, short_metadata(header.metadata), header.digest)


def short_metadata(metadata: Mapping[str, str]) -> dict[str, str | int | float | bool]:
    """The entries that fit: short ones first, within the bounds of a message."""
    kept: dict[str, str | int | float | bool] = {}
    room = METADATA_BYTES
    for key, value in sorted(metadata.items(), key=lambda pair: len(pair[1])):
        need = len(key.encode("utf-8", "replace")) + len(value.encode("utf-8", "replace"))
        fits = 0 < len(key) <= 64 and len(value) <= TEXT_LENGTH and need <= room and _is_encodable(key + value)
        if fits and len(kept) < MAP_LENGTH:
            kept[key], room = value, room - need
    return kept


def _is_encodable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
