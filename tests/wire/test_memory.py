"""A refused message costs at most twice its size and 1 MiB, whatever it claims."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from tutti.backend.errors import RemoteProtocolError
from tutti.backend.wire.codec import decode

from tests.wire.corpus import CORPUS
from tests.wire.corpus.row import Row

REPOSITORY = Path(__file__).resolve().parents[2]
SPARE_BYTES = 1 << 20

EXPENSIVE = (
    "header: 1,020 nested arrays that claim 1,024 elements each",
    "header: 61,440 empty maps",
    "nonce: nested arrays that claim 1,024 elements each",
    "nonce: 61,440 empty arrays",
    "manifest: 4 MiB of empty arrays",
    "tensor: 256 MiB claimed, none sent",
    "100,000 empty frames",
)
"""Rows that a decoder could be made to pay for."""


def _allowed(size_bytes: int) -> int:
    return 2 * size_bytes + SPARE_BYTES


def _refusal_bytes(row: Row) -> int:
    """What Python allocated at most while it refused a message."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    with pytest.raises(RemoteProtocolError):
        decode(row.frames)
    return tracemalloc.get_traced_memory()[1] - before


def test_refusing_any_row_of_the_corpus_allocates_little() -> None:
    tracemalloc.start()
    try:
        spent = {row.name: (_refusal_bytes(row), _allowed(sum(map(len, row.frames)))) for row in CORPUS}
    finally:
        tracemalloc.stop()
    assert not {name: (peak, allowed) for name, (peak, allowed) in spent.items() if peak > allowed}
    assert max(peak for peak, _ in spent.values()) > 0


def _grown_by(name: str, how: str) -> tuple[int, int]:
    """Size of a row's message, and by how much a fresh process grew that handled it."""
    frames = next(row.frames for row in CORPUS if row.name == name)
    result = subprocess.run(
        [sys.executable, "-m", "tests.wire.memory_probe", how],
        input=b"".join(len(frame).to_bytes(8, "little") + frame for frame in frames),
        cwd=REPOSITORY,
        capture_output=True,
        timeout=60,
        check=True,
    )
    return sum(map(len, frames)), int(result.stdout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="a process's own peak: only on Linux")


@linux
@pytest.mark.parametrize("name", EXPENSIVE)
def test_refusing_it_in_a_fresh_process_stays_small(name: str) -> None:
    size, grown = _grown_by(name, "decode")
    assert grown <= _allowed(size)


@linux
@pytest.mark.parametrize("name", [EXPENSIVE[0], EXPENSIVE[1], EXPENSIVE[4]])
def test_the_measurement_sees_what_a_plain_unpack_would_pay(name: str) -> None:
    size, grown = _grown_by(name, "naive")
    assert grown > _allowed(size)
