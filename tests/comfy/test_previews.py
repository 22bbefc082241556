"""Previews, progress and the lines on the node, while a job runs."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.comfy.rig import plain, prompt, succeed
from tests.support.comfyui import ComfyServer, Run
from tests.support.daemon import Daemon
from tests.support.workflows import Workflow

STEPS = 200


@pytest.fixture(scope="module")
def watched(comfy: ComfyServer, two_ranks: Daemon) -> Run:
    """A run long enough for several previews, watched with ComfyUI's latent2rgb."""
    return succeed(comfy, prompt(plain(steps=STEPS, sampler_name="heun")), preview_method="latent2rgb")


def progress_of(run: Run) -> list[tuple[float, int, int]]:
    """(seconds, value, maximum) of every progress event."""
    return [(at_s, data["value"], data["max"]) for at_s, kind, data in run.events if kind == "progress"]


def test_previews_arrive_while_the_loop_runs(watched: Run) -> None:
    end_s = max(at_s for at_s, _, _ in progress_of(watched))
    during = [preview for preview in watched.previews if preview.at_s < end_s]
    assert len(during) >= 2


def test_previews_are_pictures_of_the_sampling_node(watched: Run) -> None:
    samplers = {preview.node_id for preview in watched.previews}
    assert len(samplers) == 1
    picture = Image.open(io.BytesIO(watched.previews[-1].image))
    assert picture.format == "JPEG"
    assert picture.width == picture.height
    low, high = picture.convert("L").getextrema()
    assert high - low > 20, "a latent of noise is no even grey"


def test_there_are_at_most_eight_previews_a_second(watched: Run) -> None:
    times = [preview.at_s for preview in watched.previews[:-1]]  # the last one comes with the result
    assert len(times) > 8, "the run was too short to tell"
    for first, ninth in zip(times, times[8:], strict=False):
        assert ninth - first >= 0.9  # a little less than a second: they cross two sockets on the way


def test_progress_rises_to_the_end(watched: Run) -> None:
    values = [value for _, value, _ in progress_of(watched)]
    assert values == sorted(values)
    assert values[-1] == STEPS
    assert {maximum for _, _, maximum in progress_of(watched)} == {STEPS}
    assert len(set(values)) >= 3


def test_the_node_says_plan_and_speed(watched: Run) -> None:
    assert "ulysses=2" in watched.all_texts
    assert f"{STEPS} steps at" in watched.all_texts


def test_without_a_preview_method_there_are_no_previews(comfy: ComfyServer, two_ranks: Daemon) -> None:
    run = succeed(comfy, prompt(plain(steps=20)))
    assert run.previews == []
    assert progress_of(run)[-1][1] == 20


def test_step_by_step_every_step_has_its_preview(comfy: ComfyServer, two_ranks: Daemon) -> None:
    run = succeed(comfy, prompt(plain(sampler_name="euler_ancestral")), preview_method="latent2rgb")
    assert len(run.previews) == 5


def test_the_status_node_tells_group_ranks_model_and_queue(comfy: ComfyServer, two_ranks: Daemon) -> None:
    def build(w: Workflow) -> None:
        w.add("TuttiStatus")

    run = succeed(comfy, prompt(build))
    (text,) = next(iter(run.outputs.values()))["text"]
    for word in (
        "ready",
        "rank 0: cpu",
        "rank 1: cpu",
        "ulysses=2",
        "flux-tiny",
        "0 waiting",
        "compile: off",
        "attention: torch-cpu-flash",
    ):
        assert word in text, text
