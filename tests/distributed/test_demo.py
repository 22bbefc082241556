"""``tutti demo`` from start to end: a daemon, two ranks and the model that ships, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.support.daemon import TUTTI

pytestmark = pytest.mark.timeout(300)


def demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, in ``folder``."""
    return subprocess.run(
        [str(TUTTI), "demo", *words], capture_output=True, text=True, timeout=280, check=False, cwd=folder, env={**os.environ}
    )  # fmt: skip


def test_the_pictures_are_drawn_and_it_says_what_it_took(tmp_path: Path) -> None:
    prompts = ("--prompt", "a red circle on a white background", "--prompt", "a blue monkey")
    done = demo(tmp_path, *prompts, "--steps", "3", "--plan", "ring=2", "--out", "drawn")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "drawn" / "demo.png"
    assert done.stdout.rstrip().endswith(f"The picture: {path}")
    assert "does not know them: monkey." in done.stdout
    assert "Plan cfg=1,ring=2,ulysses=1, codec off" in done.stdout
    assert re.search(r"[0-9.]+ ms a step \(median\), for 2 pictures at once", done.stdout)
    # 10 attentions send the keys and values of 84 tokens, and the network's output is gathered: by hand, 3,473,408 bytes a step.
    assert re.search(r"10\.4 MB exchanged between the ranks, 3\.5 MB a step", done.stdout)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_nothing_of_it_stays(tmp_path: Path) -> None:
    temporary = tmp_path / "t"
    temporary.mkdir()
    done = subprocess.run(
        [str(TUTTI), "demo", "--prompt", "a red circle", "--steps", "1", "--size", "64"], capture_output=True, text=True, timeout=280,
        check=False, cwd=tmp_path, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"t", "demo.png"}
    assert not [path for path in temporary.iterdir() if "tutti" in path.name], "torch may keep a cache of its own"
    assert not [process for process in psutil.Process().children(recursive=True) if "tutti" in process.name()]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--codec", "fp8"), "tutti: Set --codec to off"),
        (("--size", "100"), "tutti: Set --size to WIDTHxHEIGHT"),
        (("--prompt", "an elephant"), "tutti: Use words that the demo model knows"),
        (("--plan", "ulysses=3"), "tutti: Choose a ulysses degree that divides the model's 2 heads"),
    ],
)
def test_a_mistake_is_one_sentence_and_starts_nothing(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    done = demo(tmp_path, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(says)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
