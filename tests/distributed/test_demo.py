"""``tutti demo`` from start to end: a daemon, two ranks and the model that ships, as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from tutti.backend.assets.prompt import parse
from tutti.backend.assets.vocabulary import COLOURS, SHAPES
from tutti.backend.demo.options import PROMPTS
from tutti.backend.demo.sheet import GAP
from tutti.benchmarks.quality.checker import Asked, check

from tests.support.daemon import TUTTI

SIDE = 128
"""Of the pictures, in pixels; the sheet shows them twice as large."""

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
    assert "Plan cfg=1,ring=2,ulysses=1, codec off, compression off" in done.stdout
    assert re.search(r"[0-9.]+ ms a step \(median\), for 2 pictures at once", done.stdout)
    # 10 attentions send the keys and values of 84 tokens, and the network's output is gathered: by hand, 3,473,408 bytes a step.
    assert re.search(r"10\.4 MB exchanged between the ranks, 3\.5 MB a step", done.stdout)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_a_codec_is_told_as_approximate_and_sends_less(tmp_path: Path) -> None:
    sent = {}
    for codec in ("off", "int8-all"):
        words = (
            "--prompt",
            "a red circle on a white background",
            "--steps",
            "1",
            "--plan",
            "ulysses=2",
            "--codec",
            codec,
        )
        done = demo(tmp_path, *words)
        assert done.returncode == 0, done.stderr
        told = codec if codec == "off" else f"{codec} (approximate)"
        assert f"Plan cfg=1,ring=1,ulysses=2, codec {told}" in done.stdout
        found = re.search(r"([0-9.]+) kB exchanged", done.stdout) or re.search(r"([0-9.]+) MB exchanged", done.stdout)
        assert found
        sent[codec] = float(found[1]) * (1000 if "MB exchanged" in done.stdout else 1)
    # float32 and head_dim 64: 68 bytes a row in place of 256, and the gathered output, which is raw.
    assert 0.26 < sent["int8-all"] / sent["off"] < 0.32


def test_pictures_are_drawn_with_and_without_compression_and_compared(tmp_path: Path) -> None:
    words = ("--prompt", "a red circle on a white background", "--prompt", "a blue star on a yellow background")
    done = demo(tmp_path, *words, "--steps", "8", "--compression", "balanced")
    assert done.returncode == 0, done.stderr
    plan = "Plan cfg=1,ring=1,ulysses=2, codec off, compression "
    assert [line.strip() for line in done.stdout.splitlines() if "Plan" in line] == [
        f"{plan}off",
        f"{plan}balanced (approximate)",
    ]
    assert re.search(r"balanced: [\d.]+x fewer bytes, error [\d.]+ %, [\d.]+ MB of state", done.stdout)
    without, compressed = (float(found) for found in re.findall(r"([0-9.]+) MB exchanged", done.stdout))
    assert compressed < without / 3, "key frame included"
    found = re.search(r"without compression: PSNR ([0-9.]+) dB \(median\)", done.stdout)
    assert found
    assert 20 < float(found[1]) < 80
    with Image.open(tmp_path / "demo.png") as sheet:
        first, second, third, _ = (np.asarray(picture).astype(int) for picture in cut(sheet.convert("RGB"), 4))
    assert 0 < np.abs(first - second).mean() < np.abs(first - third).mean() / 2, "a pair beside the next one"


def test_the_pictures_show_what_was_asked_for(tmp_path: Path) -> None:
    """The model that ships, from a sentence to the file on disk: other words, another scale or another decoder would draw something else."""
    texts = PROMPTS[:4]
    done = demo(tmp_path, *(word for text in texts for word in ("--prompt", text)))
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "demo.png") as sheet:
        drawn = [np.asarray(picture) for picture in cut(sheet.convert("RGB"), len(texts))]
    asked = [asked_in(text) for text in texts]
    kept = [all(check(picture, questions)) for picture, questions in zip(drawn, asked, strict=True)]
    assert sum(kept) >= 3, kept
    others = [any(check(picture, questions)) for picture, questions in zip(drawn, asked[1:] + asked[:1], strict=True)]
    assert not any(others), "the control: none shows what its neighbour was asked for"


def cut(sheet: Image.Image, count: int) -> list[Image.Image]:
    """The first row's pictures, in the size in which they were drawn."""
    side = 2 * SIDE
    return [
        sheet.crop((x, GAP, x + side, GAP + side)).resize((SIDE, SIDE), Image.Resampling.BOX)
        for x in range(GAP, GAP + count * (side + GAP), side + GAP)
    ]


def asked_in(text: str) -> list[Asked]:
    """What a prompt of one object asks for."""
    words = [word for word, part in parse(text).words if part == 0]
    (shape,) = set(words) & set(SHAPES)
    (colour,) = set(words) & set(COLOURS)
    return [Asked(shape=shape, colour=colour, place=None)]


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_demo_that_is_told_to_end_takes_its_daemon_and_ranks_along(tmp_path: Path, number: signal.Signals) -> None:
    command = [str(TUTTI), "demo", "--steps", "1000", "--out", str(tmp_path)]
    # Where the tests run in the background of a shell, Ctrl-C is ignored by all that they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            while "start a daemon" not in process.stdout.readline():
                assert process.poll() is None, "it ended by itself"
            started = psutil.Process(process.pid).children(recursive=True)
            assert len(started) >= 3, "a daemon and two ranks, at least"
            process.send_signal(number)
            assert process.wait(60) == 130
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--codec", "zip"), "tutti: Set --codec to off"),
        (("--compression", "zip"), "tutti: Set --compression to off"),
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
