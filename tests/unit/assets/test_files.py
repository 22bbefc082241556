"""The shipped files: found when they are whole, refused with a remedy when they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tutti.backend.assets.files import AUTOENCODER, DIGESTS, TRANSFORMER, digest_of, shipped_file
from tutti.backend.errors import BadCheckpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (TRANSFORMER, AUTOENCODER):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode() * 1000)
    digests = {name: digest_of(tmp_path / "models" / name) for name in (TRANSFORMER, AUTOENCODER)}
    (tmp_path / DIGESTS).write_text(json.dumps(digests))
    return tmp_path


@pytest.mark.parametrize("name", [TRANSFORMER, AUTOENCODER])
def test_a_whole_file_is_found(folder: Path, name: str) -> None:
    assert shipped_file(name, folder).read_bytes().startswith(name.encode())


@pytest.mark.parametrize("harm", ["missing", "cut short", "one bit", "no digests", "digests of something else"])
def test_a_file_that_is_not_what_was_shipped_is_refused(folder: Path, harm: str) -> None:
    path = folder / "models" / TRANSFORMER
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "cut short":
        path.write_bytes(content[:-1])
    elif harm == "one bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "no digests":
        (folder / DIGESTS).unlink()
    else:
        (folder / DIGESTS).write_text("{}")
    named = "digests.json" if "digests" in harm else "tutti_demo_flux.safetensors"
    with pytest.raises(
        BadCheckpoint, match=f"^Install Tutti again: {named}, a file of its demo model, is (missing|damaged)"
    ):
        shipped_file(TRANSFORMER, folder)
