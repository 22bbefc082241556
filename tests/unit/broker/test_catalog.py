"""Model names to files, and what a safetensors header says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tutti.backend.assets.files import digest_of
from tutti.backend.broker import catalog as catalogs
from tutti.backend.broker.catalog import Catalog
from tutti.backend.broker.store import FileStore
from tutti.backend.errors import BadCheckpoint, QueueFull, UnknownModel
from tutti.backend.wire.messages import ManifestEntry

TENSOR = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path: Path, header: Any = None, data: bytes = bytes(24)) -> Path:
    """A safetensors file."""
    raw = header if isinstance(header, bytes) else json.dumps({"w": TENSOR} if header is None else header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder as ComfyUI has it."""
    write(tmp_path / "models" / "diffusion_models" / "a.safetensors")
    write(tmp_path / "models" / "diffusion_models" / "sub" / "b.safetensors")
    write(tmp_path / "models" / "unet" / "old.safetensors")
    (tmp_path / "models" / "diffusion_models" / "notes.txt").write_text("x")
    (tmp_path / "models" / "diffusion_models" / "c.ckpt").write_text("x")
    return tmp_path / "models"


@pytest.fixture
def catalog(models: Path, tmp_path: Path) -> Catalog:
    """Over that folder."""
    return Catalog([models], tmp_path / "folders.json")


def test_the_list_has_every_checkpoint_with_its_size_and_nothing_else(catalog: Catalog, models: Path) -> None:
    size = (models / "diffusion_models" / "a.safetensors").stat().st_size
    assert catalog.list_models() == tuple(
        ManifestEntry(name=f"diffusion_models/{name}.safetensors", kind="FILE", numbers=(size,))
        for name in ("a", "old", "sub/b")
    )


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_a_listing_ends_where_a_manifest_is_full_in_whatever_folder_that_is(
    catalog: Catalog, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files are in the first folder and one is in the second."""
    walked: list[Path] = []
    walk = catalogs._walk

    def walk_noted(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
        if not above:
            walked.append(folder)
        return walk(folder, above)

    monkeypatch.setattr(catalogs, "_walk", walk_noted)
    monkeypatch.setattr(catalogs, "MANIFEST_ENTRIES", limit)
    assert len(catalog.list_models()) == min(limit, 3)
    assert len(walked) == (1 if limit <= 2 else 2), "no folder is walked for nothing"


def test_every_listed_name_is_found_and_the_older_folder_counts(catalog: Catalog, models: Path) -> None:
    for entry in catalog.list_models():
        catalog.resolve(entry.name)
    assert catalog.resolve("diffusion_models/old.safetensors").path == str(models / "unet" / "old.safetensors")


def test_a_checkpoint_is_described_by_its_tensors_and_metadata(catalog: Catalog, models: Path) -> None:
    header = {
        "w": TENSOR,
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
        "__metadata__": {"author": "me"},
    }
    write(models / "diffusion_models" / "d.safetensors", header, bytes(26))
    described = catalog.describe("diffusion_models/d.safetensors").header
    assert described.tensors == (
        ManifestEntry(name="w", kind="F32", numbers=(2, 3)),
        ManifestEntry(name="b", kind="BF16", numbers=()),
    )
    assert described.metadata == {"author": "me"}


def test_metadata_is_passed_on_as_far_as_it_fits(catalog: Catalog, models: Path) -> None:
    metadata = {f"k{n}": "x" * 3000 for n in range(20)} | {
        "short": "y",
        "large": "z" * 5000,
        "bad": "\ud800",
        "n" * 65: "x",
    }
    write(models / "diffusion_models" / "d.safetensors", {"w": TENSOR, "__metadata__": metadata})
    kept = catalog.describe("diffusion_models/d.safetensors").header.metadata
    assert kept["short"] == "y"
    assert not {"large", "bad", "n" * 65} & set(kept)
    assert sum(len(key) + len(str(value)) for key, value in kept.items()) <= 16 * 1024


@pytest.mark.parametrize("change", ["size", "time", "header"])
def test_the_fingerprint_changes_when_the_file_does(catalog: Catalog, models: Path, change: str) -> None:
    path, name = models / "diffusion_models" / "a.safetensors", "diffusion_models/a.safetensors"
    before, info = catalog.resolve(name).fingerprint, path.stat()
    assert catalog.resolve(name).fingerprint == before
    if change == "size":
        write(path, data=bytes(25))
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    else:
        write(path, {"v": TENSOR})
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert catalog.resolve(name).fingerprint != before


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint at all"),
    "length beyond the file": lambda path: path.write_bytes((10**6).to_bytes(8, "little") + b"{}"),
    "gigantic length": lambda path: path.write_bytes((2**63).to_bytes(8, "little") + b"{}"),
    "no json": lambda path: write(path, b"{nonsense"),
    "deep json": lambda path: write(path, b"[" * 100_000),
    "a list": lambda path: write(path, b"[]"),
    "cut off": lambda path: write(path, data=bytes(23)),
    "no dtype": lambda path: write(path, {"w": {"shape": [1], "data_offsets": [0, 4]}}),
    "negative shape": lambda path: write(path, {"w": TENSOR | {"shape": [-1, 3]}}),
    "shape of floats": lambda path: write(path, {"w": TENSOR | {"shape": [1.5]}}),
    "overflowing shape": lambda path: write(path, {"w": TENSOR | {"shape": [2**40, 2**40]}}),
    "nine dimensions": lambda path: write(path, {"w": TENSOR | {"shape": [1] * 9}}),
    "offsets reversed": lambda path: write(path, {"w": TENSOR | {"data_offsets": [24, 0]}}),
    "offsets missing": lambda path: write(path, {"w": TENSOR | {"data_offsets": []}}),
    "truth as a size": lambda path: write(path, {"w": TENSOR | {"shape": [True]}}),
    "a name too long": lambda path: write(path, {"w" * 600: TENSOR}),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(100)),
    "too many tensors": lambda path: write(path, {f"w{n}": TENSOR for n in range(16_385)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_no_whole_safetensors_file_is_named_as_such(catalog: Catalog, models: Path, damage: str) -> None:
    DAMAGE[damage](models / "diffusion_models" / "a.safetensors")
    with pytest.raises(BadCheckpoint) as refused:
        catalog.resolve("diffusion_models/a.safetensors")
    assert str(models) not in refused.value.message


def test_a_file_that_cannot_be_read_is_named_as_such(catalog: Catalog, models: Path) -> None:
    (models / "diffusion_models" / "memory.safetensors").symlink_to(
        "/proc/self/mem"
    )  # nobody can read it at 0, not even root
    with pytest.raises(BadCheckpoint):
        catalog.resolve("diffusion_models/memory.safetensors")


def test_folders_and_devices_are_no_checkpoints(catalog: Catalog, models: Path) -> None:
    (models / "diffusion_models" / "folder.safetensors").mkdir()
    os.mkfifo(models / "diffusion_models" / "pipe.safetensors")
    for name in ("folder", "pipe"):
        with pytest.raises(UnknownModel):
            catalog.resolve(f"diffusion_models/{name}.safetensors")
    assert len(catalog.list_models()) == 3


def test_a_symlinked_model_drive_is_normal(catalog: Catalog, models: Path, tmp_path: Path) -> None:
    drive = write(tmp_path / "drive" / "big.safetensors").parent
    (models / "diffusion_models" / "drive").symlink_to(drive)
    assert "diffusion_models/drive/big.safetensors" in {entry.name for entry in catalog.list_models()}
    assert catalog.resolve("diffusion_models/drive/big.safetensors").path.endswith("drive/big.safetensors")


def test_links_that_make_a_circle_end(catalog: Catalog, models: Path) -> None:
    (models / "diffusion_models" / "loop").symlink_to(models / "diffusion_models")
    assert len(catalog.list_models()) < 100


def test_the_first_folder_that_has_a_name_wins(models: Path, tmp_path: Path) -> None:
    write(tmp_path / "more" / "diffusion_models" / "a.safetensors", data=bytes(100))
    first, second = (
        Catalog([models, tmp_path / "more"], tmp_path / "f"),
        Catalog([tmp_path / "more", models], tmp_path / "f"),
    )
    name = "diffusion_models/a.safetensors"
    assert (first.resolve(name).path, second.resolve(name).path) == (
        str(models / name),
        str(tmp_path / "more" / "diffusion_models" / "a.safetensors"),
    )


def test_folders_that_comfyui_wrote_down_are_read_again_when_they_change(catalog: Catalog, tmp_path: Path) -> None:
    file, extra = tmp_path / "folders.json", write(tmp_path / "extra" / "z.safetensors").parent
    with pytest.raises(UnknownModel):
        catalog.resolve("diffusion_models/z.safetensors")
    file.write_text(json.dumps({"diffusion_models": [str(extra)], "unet": [], "loras": ["/elsewhere"]}))
    assert catalog.resolve("diffusion_models/z.safetensors").path == str(extra / "z.safetensors")
    file.write_text(json.dumps({"diffusion_models": []}))
    with pytest.raises(UnknownModel):
        catalog.resolve("diffusion_models/z.safetensors")
    file.unlink()
    assert len(catalog.folders()) == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{nonsense", '{"diffusion_models": 5}', '{"diffusion_models": [["x"]]}', "[" * 10_000]
)
def test_a_damaged_list_of_folders_is_as_good_as_none(catalog: Catalog, tmp_path: Path, text: str) -> None:
    (tmp_path / "folders.json").write_text(text)
    assert len(catalog.list_models()) == 3


def test_a_relative_folder_is_not_searched(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "here" / "z.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folders.json").write_text(json.dumps({"diffusion_models": ["here"]}))
    with pytest.raises(UnknownModel):
        catalog.resolve("diffusion_models/z.safetensors")


# --- what ships with Tutti ----------------------------------------------------------------------------------------------


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """A folder as ``backend/assets`` is, with a file of a kind that no daemon serves."""
    folder = tmp_path / "assets"
    digests = {
        name: digest_of(write(folder / "models" / name)) for name in ("diffusion_models/demo.safetensors", "vae/v.safetensors")
    }  # fmt: skip
    (folder / "digests.json").write_text(json.dumps(digests))
    return folder


def test_a_shipped_model_is_listed_and_found_like_any_other(models: Path, assets: Path, tmp_path: Path) -> None:
    catalog = Catalog([models], tmp_path / "folders.json", assets)
    names = [entry.name.removeprefix("diffusion_models/") for entry in catalog.list_models()]
    assert names == ["a.safetensors", "demo.safetensors", "old.safetensors", "sub/b.safetensors"]
    found = catalog.resolve("diffusion_models/demo.safetensors")
    assert found.path == str(assets / "models" / "diffusion_models" / "demo.safetensors")
    assert catalog.folders()[0] == catalog.shipped


def test_a_shipped_model_goes_before_another_file_of_its_name(models: Path, assets: Path, tmp_path: Path) -> None:
    """Who asks for the demo model is told how to prompt it: another network under its name would draw noise."""
    write(models / "diffusion_models" / "demo.safetensors")
    catalog = Catalog([models], tmp_path / "f", assets)
    assert catalog.shipped is not None
    assert catalog.resolve("diffusion_models/demo.safetensors").path == str(catalog.shipped / "demo.safetensors")


def test_a_missing_shipped_model_is_never_replaced_by_another_of_its_name(
    models: Path, assets: Path, tmp_path: Path
) -> None:
    write(models / "diffusion_models" / "demo.safetensors")
    (assets / "models" / "diffusion_models" / "demo.safetensors").unlink()
    with pytest.raises(
        BadCheckpoint, match=r"Install Tutti again: demo\.safetensors, a file of its demo model, is missing"
    ):
        Catalog([models], tmp_path / "f", assets).resolve("diffusion_models/demo.safetensors")


@pytest.mark.parametrize("what", ["a flipped bit", "cut off", "not a shipped name"])
def test_a_shipped_model_that_is_not_what_was_shipped_is_refused(assets: Path, tmp_path: Path, what: str) -> None:
    name = "diffusion_models/demo.safetensors"
    path = assets / "models" / name
    data = path.read_bytes()
    if what == "not a shipped name":
        name = "diffusion_models/another.safetensors"
        write(assets / "models" / name)
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if what == "a flipped bit" else data[:-1])
    with pytest.raises(BadCheckpoint, match="Install Tutti again") as refused:
        Catalog([], tmp_path / "f", assets).resolve(name)
    assert str(tmp_path) not in refused.value.message


def test_a_stored_lora_that_a_job_names_makes_no_room_for_others(models: Path, tmp_path: Path) -> None:
    data, other = write(tmp_path / "lora").read_bytes(), bytes(80)
    store = FileStore(tmp_path / "stored", most_bytes=len(data) + 10)
    catalog = Catalog([models], tmp_path / "folders.json", stored=tmp_path / "stored")
    digest, other_digest = (hashlib.blake2b(file, digest_size=16).hexdigest() for file in (data, other))
    name, path = f"stored/{digest}.safetensors", tmp_path / "stored" / f"{digest}.safetensors"
    store.put(digest, len(data), 0, data)
    os.utime(path, (0, 0))
    before = catalog.resolve_all("diffusion_models/a.safetensors", name)
    assert before.loras[0].path == str(path)
    with pytest.raises(QueueFull):
        store.put(other_digest, len(other), 0, other)
    assert catalog.resolve_all("diffusion_models/a.safetensors", name) == before, (
        "the same file, however often it is named"
    )
    os.utime(path, (0, 0))
    store.put(other_digest, len(other), 0, other)
    with pytest.raises(UnknownModel, match="Queue the workflow again: the daemon has dropped the LoRA"):
        catalog.resolve_all("diffusion_models/a.safetensors", name)


def test_a_stored_lora_that_goes_while_it_is_looked_up_is_unknown(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"stored/{'ab' * 16}.safetensors"
    path = write(tmp_path / name)
    catalog, touch = Catalog([models], tmp_path / "folders.json", stored=tmp_path / "stored"), os.utime

    def too_late(file: Path) -> None:
        path.unlink()
        touch(file)

    monkeypatch.setattr(os, "utime", too_late)
    with pytest.raises(UnknownModel, match="Queue the workflow again"):
        catalog.resolve_all("diffusion_models/a.safetensors", name)
