"""One checkpoint as its header describes it: weights by the names that a network knows, however they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PLAIN_KINDS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"})
"""safetensors' names for tensors that are what they seem."""
_SMALL_FLOATS = frozenset({"F8_E4M3", "F8_E5M2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTensor:
    """One tensor of a safetensors file."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the beginning of the file."""
    end: int

    @property
    def size_bytes(self) -> int:
        """What it takes in the file."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One weight, bias or table of a network."""

    name: str
    kind: str
    """safetensors' dtype; for a quantised weight the name of its format."""
    shape: tuple[int, ...]
    """As the network sees it."""
    stored_bytes: int
    """In the file, with its scales."""
    scales: Mapping[str, str] = field(default_factory=dict)
    """Of a quantised weight: ``weight_scale``, ``weight_scale_2`` -> the tensor that holds it."""
    settings: Mapping[str, int | bool] = field(default_factory=dict)
    """Of a quantised weight: what else its format has to be told."""

    @property
    def is_packed(self) -> bool:
        """Whether it is stored quantised, a plain eight-bit float included."""
        return self.kind in _SMALL_FLOATS or self.kind not in PLAIN_KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHeader:
    """What the header of a checkpoint says."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    digest: str
    """Of the header's bytes, 32 hexadecimal digits: part of the file's fingerprint."""
    size_bytes: int
    """Of all files that belong to the checkpoint."""
