"""A workflow names models, never paths: two hundred hostile names, and no file is opened for any of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tutti.backend.broker.catalog import Catalog
from tutti.backend.errors import UnknownModel

SECRET = "secret.safetensors"

_opened: list[str] | None = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(str(arguments[0]))


sys.addaudithook(_listen)  # for the life of the process; it notes something only while a test wants it


def hostile_names(outside: Path) -> list[str]:
    """Ways out of a folder, as people have tried them."""
    dots = [
        "..", "...", "....", ". .", ".. ", " ..", "..\t", "..\x00", "%2e%2e", "%252e%252e", "..%00", "\u2025", "\uff0e\uff0e", "\u3002\u3002",
        ".\u200b.", ".\u202e.", "\u202e..", ".\ufeff.", "..;", "..\u0000", ".\xad.",
    ]  # fmt: skip
    slashes = [
        "/",
        "\\",
        "//",
        "/./",
        "%2f",
        "%5c",
        "\u2215",
        "\u2044",
        "\uff0f",
        "\u29f5",
        "\uff3c",
        "\u2216",
        "/\x00/",
    ]
    names = [f"diffusion_models{slash}{dot}{slash}{SECRET}" for dot in dots for slash in slashes[:8]]
    names += [f"diffusion_models/{dot}/{dot}/{SECRET}" for dot in dots]
    names += [f"diffusion_models/sub{slash}..{slash}..{slash}{SECRET}" for slash in slashes]
    names += [
        str(outside / SECRET), f"diffusion_models/{outside / SECRET}", f"/{SECRET}", f"//{SECRET}", f"~/{SECRET}", f"~root/{SECRET}",
        f"diffusion_models//{SECRET}", f"diffusion_models/./{SECRET}", f"diffusion_models/~/{SECRET}", f"./diffusion_models/{SECRET}",
        f"../diffusion_models/{SECRET}", f"diffusion_models/../{SECRET}", f"unet/../{SECRET}", f"loras/{SECRET}", SECRET,
        f"file://{outside / SECRET}", f"file:{outside / SECRET}", f"http://example.org/{SECRET}", f"diffusion_models/http://x/{SECRET}",
        f"diffusion_models/C:\\{SECRET}", f"diffusion_models/C:/{SECRET}", f"C:\\models\\{SECRET}", f"\\\\host\\share\\{SECRET}",
        f"diffusion_models/\\\\?\\C:\\{SECRET}", "diffusion_models/CON.safetensors/x.safetensors", f"diffusion_models/{SECRET}/../{SECRET}",
        f"diffusion_models/{SECRET}\x00.safetensors", f"diffusion_models/\x00{SECRET}", f"diffusion_models/{SECRET}\n", "diffusion_models/",
        f"diffusion_models/\n{SECRET}", f"diffusion_models/\r\n{SECRET}", f"diffusion_models/\x1b[2J{SECRET}", f"diffusion_models/\x7f{SECRET}",
        f"diffusion_models/\ud800{SECRET}", f"diffusion_models/\udcff{SECRET}", f"diffusion_models/\ufffe{SECRET}", f"diffusion_models/\ue000{SECRET}",
        "diffusion_models", "", ".", "..", "/", "\x00", "diffusion_models/..", "diffusion_models/.", f"diffusion_models/{'a/' * 300}{SECRET}",
        "diffusion_models/" + "x" * 600 + ".safetensors", "diffusion_models/passwd", "diffusion_models/x.ckpt", "diffusion_models/x.pt",
        "diffusion_models/x.bin", "diffusion_models/x.pkl", "diffusion_models/x.safetensors.pkl", "diffusion_models/x.safetensors/",
        "diffusion_models/$(reboot).safetensors", "diffusion_models/`id`.safetensors", "diffusion_models/|id.safetensors",
        "diffusion_models/;id.safetensors", "diffusion_models/{0.__class__}.safetensors", "diffusion_models/%s%n.safetensors",
        "diffusion_models/*.safetensors", "diffusion_models/?.safetensors", "diffusion_models/[a-z].safetensors",
        f"DIFFUSION_MODELS/{SECRET}", f"Diffusion_Models/{SECRET}", f" diffusion_models/{SECRET}", f"diffusion_models /{SECRET}",
        f"diffusion_models/ {SECRET}", f"diffusion\u200b_models/{SECRET}", f"diffusion_models\uff0f{SECRET}",
    ]  # fmt: skip
    return list(dict.fromkeys(names))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A catalog with one model, and a file outside that somebody wants."""
    inside = tmp_path / "models" / "diffusion_models"
    (inside / "sub").mkdir(parents=True)
    (inside / "known.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    for folder in (tmp_path, tmp_path / "models"):
        (folder / SECRET).write_bytes((2).to_bytes(8, "little") + b"{}")
    return Catalog([tmp_path / "models"], tmp_path / "folders.json")


def test_there_are_two_hundred_of_them(tmp_path: Path) -> None:
    assert len(hostile_names(tmp_path)) >= 200


def test_no_hostile_name_is_known_and_no_file_is_opened_for_it(catalog: Catalog, tmp_path: Path) -> None:
    global _opened
    _opened = []
    try:
        for name in hostile_names(tmp_path):
            with pytest.raises(UnknownModel) as refused:
                catalog.resolve(name)
            assert str(tmp_path) not in refused.value.message or str(tmp_path) in name
        assert _opened == []
    finally:
        _opened = None


def test_an_honest_name_is_known_and_its_file_is_opened(catalog: Catalog) -> None:
    """Negative control: the hook hears."""
    global _opened
    _opened = []
    try:
        assert catalog.resolve("diffusion_models/known.safetensors").path.endswith("known.safetensors")
        assert len(_opened) == 1
    finally:
        _opened = None
