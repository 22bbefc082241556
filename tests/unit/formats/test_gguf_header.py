"""A GGUF header from a stranger is read within bounds: refused, or read as what it says, and quickly."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import pytest
import torch
from tutti.backend.errors import BadCheckpoint
from tutti.backend.formats.gguf_header import MOST_TENSORS, read_gguf

from tests.support import quantised

MUTANTS = 3000
LONGEST_S = 0.5
FIRST = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
"""Magic, version, number of tensors, number of entries."""
STRING, ARRAY, UINT8, UINT64 = 8, 9, 0, 10


def text(value: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if size is None else size) + value


def entry(kind: int, value: bytes) -> bytes:
    """A file with no tensor and this one entry."""
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text(b"key") + struct.pack("<I", kind) + value


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", UINT8, 0)


HOSTILE = {
    "more tensors than bytes": struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0),
    "as many tensors as allowed and none there": struct.pack("<4sIQQ", b"GGUF", 3, MOST_TENSORS, 0),
    "more entries than bytes": struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63),
    "a key without end": struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text(b"key", size=2**64 - 1),
    "a text without end": entry(STRING, text(b"value", size=2**63)),
    "an array without end": entry(ARRAY, struct.pack("<IQ", UINT64, 2**61)),
    "an array of as many empty arrays": entry(ARRAY, struct.pack("<IQ", ARRAY, 2**40)),
    "arrays in arrays": entry(ARRAY, nested(100_000)),
    "a kind that there is not": entry(77, b""),
    "an unheard-of version": struct.pack("<4sIQQ", b"GGUF", 9, 0, 0),
    "no GGUF": b"GGML" + FIRST[4:],
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_promises_too_much_is_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "hostile.gguf").write_bytes(HOSTILE[name])
    started_s = time.monotonic()
    with pytest.raises(BadCheckpoint):
        read_gguf(tmp_path / "hostile.gguf")
    assert time.monotonic() - started_s < LONGEST_S


def test_a_tensor_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    quantised.write_gguf(
        tmp_path / "whole.gguf", {"blocks.0": torch.ones(32, 64), "blocks.1": torch.ones(32, 64)}, "Q8_0"
    )
    twice = (tmp_path / "whole.gguf").read_bytes().replace(b"blocks.1", b"blocks.0")
    (tmp_path / "twice.gguf").write_bytes(twice)
    with pytest.raises(BadCheckpoint, match="names a tensor twice"):
        read_gguf(tmp_path / "twice.gguf")


def test_a_changed_byte_is_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    weights = {f"blocks.{number}.weight": torch.ones(32, 64) for number in range(4)}
    quantised.write_gguf(tmp_path / "whole.gguf", weights, "Q8_0")
    whole = (tmp_path / "whole.gguf").read_bytes()
    file = read_gguf(tmp_path / "whole.gguf")
    header_bytes = min(tensor.begin for tensor in file.tensors)
    draw = random.Random(0)
    read = refused = 0
    for _ in range(MUTANTS):
        mutant = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            mutant[draw.randrange(header_bytes)] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        (tmp_path / "mutant.gguf").write_bytes(mutant)
        started_s = time.monotonic()
        try:
            found = read_gguf(tmp_path / "mutant.gguf")
        except BadCheckpoint:
            refused += 1
        else:
            read += 1
            assert all(
                0 <= tensor.begin <= tensor.begin + tensor.entry.stored_bytes <= len(mutant) for tensor in found.tensors
            )
        assert time.monotonic() - started_s < LONGEST_S
    assert read > MUTANTS / 20, "names and paddings may change"
    assert refused > MUTANTS / 4
