"""What the demo says before a daemon is started, and what it never lets pass."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tutti.backend.assets.files import AUTOENCODER, FOLDER, TRANSFORMER, shipped_file
from tutti.backend.demo import run as demo
from tutti.backend.demo.options import DemoOptions
from tutti.backend.errors import BadCheckpoint, BadRequest, InternalError
from tutti.backend.wire.messages import Result


@pytest.fixture(autouse=True)
def _no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong is found before one is started."""

    def refuse(*_: object) -> None:
        raise AssertionError("a daemon was started")

    monkeypatch.setattr(demo, "running_daemon", refuse)


def test_a_prompt_of_which_nothing_is_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="Use words that the demo model knows"):
        demo.run_demo(DemoOptions(prompts=("a red circle", "an elephant"), out=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "harm"), [(TRANSFORMER, "damaged"), (AUTOENCODER, "damaged"), (TRANSFORMER, "missing"), (AUTOENCODER, "missing")])  # fmt: skip
def test_a_shipped_file_that_is_not_whole_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, harm: str
) -> None:
    copy = tmp_path / "assets"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "models" / name
    if harm == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr(demo, "shipped_file", functools.partial(shipped_file, folder=copy))
    with pytest.raises(BadCheckpoint) as refused:
        demo.run_demo(DemoOptions(prompts=("a red monkey",), size="64", out=tmp_path))
    assert refused.value.message == f"Install Tutti again: {Path(name).name}, a file of its demo model, is {harm}."
    said = capsys.readouterr().out
    assert "! In 'a red monkey': Without effect, because the demo model does not know them: monkey." in said
    assert "! The demo model was taught pictures with sides of 128 to 256 pixels" in said


def result(step_ms: float = 1.0, exchanged_bytes: int | None = 5, compression: str = "") -> Result:
    return Result(
        job_id="0" * 32, step_ms=step_ms, plan="ring=2", exchanged_bytes=exchanged_bytes, compression=compression
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_make_no_picture_are_an_error_and_never_a_black_one(bad: float) -> None:
    latents = torch.zeros(2, 16, 4, 4)
    latents[1, 3, 2, 2] = bad
    with pytest.raises(InternalError, match="make no picture"):
        demo._checked([latents], [result()])


def test_several_jobs_are_told_as_one() -> None:
    one, two = torch.zeros(12, 16, 4, 4), torch.ones(3, 16, 4, 4)
    drawn = demo._checked([one, two], [result(3.0, 10, "fast: 3.8x"), result(1.0, 4, "fast: 3.7x")])
    assert drawn.compression == "fast: 3.8x"
    assert drawn.latents.shape[0] == 15
    assert (drawn.step_ms, drawn.exchanged_bytes, drawn.plan) == (2.0, 14, "ring=2")
    assert demo._checked([one], [result(exchanged_bytes=None)]).exchanged_bytes is None
    assert demo._checked([one], [result(exchanged_bytes=0)]).exchanged_bytes == 0


def test_a_picture_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demo.png"
    demo._write(Image.new("RGB", (4, 4), "red"), path)
    before = path.read_bytes()

    def full(self: Image.Image, file: Path, *_: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(BadRequest, match=r"^Free some space or choose another --out: .* \(No space left on device\)"):
        demo._write(Image.new("RGB", (4, 4), "blue"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
