"""The loaders' input for compression: off unless chosen, and said on the node whenever it makes a picture approximate."""

from __future__ import annotations

import re

import pytest
from tutti.backend.parallel.plan import COMPRESSIONS

from tests.comfy.rig import CHECKPOINT, STEPWISE, WHOLE, Stock, plain, prompt, succeed
from tests.support.comfyui import ComfyServer
from tests.support.daemon import Daemon
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.workflows import Loader, Workflow, tutti_loader

COMPRESSED = tutti_loader(CHECKPOINT, compression="balanced")
STEPS = 12
LOST = (10 * FP32_TOLERANCE, 0.1)
"""Relative error of a compressed run's latent: more than rounding, and little. What is sent wrongly altogether would be of order 1."""


@pytest.mark.parametrize("node", ["TuttiLoadDiffusionModel", "TuttiDemoLoader"])
def test_the_input_offers_every_compression_is_off_by_default_and_comes_last(comfy: ComfyServer, node: str) -> None:
    """Last, because saved workflows have their values in order: those without it stay as they were."""
    inputs = comfy.get_json(f"/object_info/{node}")[node]["input"]
    assert list(inputs["optional"])[-1] == "compression"
    kind, options = inputs["optional"]["compression"]
    assert tuple(options["options"] if kind == "COMBO" else kind) == COMPRESSIONS
    assert options["default"] == "off"
    assert options["advanced"]
    assert "approximate" in options["tooltip"]


@pytest.mark.parametrize(
    "loader", [tutti_loader(CHECKPOINT, compression="off"), tutti_loader(CHECKPOINT)], ids=["off", "absent"]
)
def test_without_it_a_picture_is_exact_and_nothing_is_said(
    stock: Stock, comfy: ComfyServer, two_ranks: Daemon, loader: Loader
) -> None:
    (expected,) = stock.latents(plain(steps=STEPS))
    run = succeed(comfy, prompt(plain(steps=STEPS), loader))
    assert relative_error(comfy.latents(run)[0], expected) <= FP32_TOLERANCE
    assert "approximate" not in run.all_texts
    assert "compress" not in run.all_texts


def test_a_whole_loop_says_that_it_is_approximate_and_by_how_much(
    stock: Stock, comfy: ComfyServer, two_ranks: Daemon
) -> None:
    (expected,) = stock.latents(plain(steps=STEPS))
    run = succeed(comfy, prompt(plain(steps=STEPS), COMPRESSED))
    assert LOST[0] < relative_error(comfy.latents(run)[0], expected) < LOST[1]
    assert WHOLE in run.all_texts
    shown = r"cfg=1,ring=1,ulysses=2,compression=balanced \(approximate\)"
    assert re.search(shown + r" on 2 ranks, compressed [\d.]+x, error [\d.]+ %", run.all_texts), run.all_texts
    brought = r"balanced: [\d.]+x fewer bytes, error [\d.]+ %, [\d.]+ .B of state"
    assert re.search(shown + rf", {STEPS} steps at \d+ ms, {brought}", run.all_texts), "the last line keeps it"

    def status(w: Workflow) -> None:
        w.add("TuttiStatus")

    (text,) = next(iter(succeed(comfy, prompt(status)).outputs.values()))["text"]
    assert re.search(rf"(?m)^compression: {brought}$", text), text


def test_a_loop_that_runs_in_comfyui_says_so_too(stock: Stock, comfy: ComfyServer, two_ranks: Daemon) -> None:
    build = plain(steps=STEPS, sampler_name="dpm_2")
    (expected,) = stock.latents(build)
    run = succeed(comfy, prompt(build, COMPRESSED))
    assert LOST[0] < relative_error(comfy.latents(run)[0], expected) < LOST[1]
    assert STEPWISE in run.all_texts
    assert "the sampler dpm_2" in run.all_texts
    assert re.search(r"compression=balanced \(approximate\) on 2 ranks, compressed [\d.]+x", run.all_texts), (
        run.all_texts
    )


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"compression": "zip"}, "Set compression to one of off, auto, fast, balanced, small"),
        ({"compression": "small", "plan": "ulysses=2,compression=fast"}, "Name one compression"),
    ],
)
@pytest.mark.parametrize("node", ["TuttiLoadDiffusionModel", "TuttiDemoLoader"])
def test_a_compression_that_is_none_or_one_too_many_is_refused_before_anything_is_queued(
    comfy: ComfyServer, node: str, inputs: dict[str, str], says: str
) -> None:
    loader = tutti_loader(CHECKPOINT, **inputs) if node != "TuttiDemoLoader" else Loader(class_type=node, inputs=inputs)
    run = comfy.run(prompt(plain(), loader))
    assert run.status == "refused"
    assert says in run.error


def test_a_codec_and_a_compression_are_refused_together(comfy: ComfyServer, two_ranks: Daemon) -> None:
    run = comfy.run(prompt(plain(), tutti_loader(CHECKPOINT, plan="ulysses=2,codec=int8", compression="fast")))
    assert run.status == "error"
    assert "Take codec=int8 or compression=fast off the plan" in run.error


def test_where_nothing_is_exchanged_the_picture_is_exact_and_the_node_says_why(
    stock: Stock, comfy: ComfyServer, two_ranks: Daemon
) -> None:
    (expected,) = stock.latents(plain(steps=STEPS))
    run = succeed(comfy, prompt(plain(steps=STEPS), tutti_loader(CHECKPOINT, plan="cfg=2", compression="small")))
    assert relative_error(comfy.latents(run)[0], expected) <= FP32_TOLERANCE
    assert "approximate" not in run.all_texts
    assert "one rank for each branch: nothing to compress" in run.all_texts
