"""A stock KSampler over our MODEL, seen in the browser: previews appear in its node while a real daemon samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.browser.conftest import OpenEditor
from tests.browser.editor import FINAL_EVENTS, PREVIEW_EVENTS, RENDERERS, Editor
from tests.browser.scene import FLUX
from tests.comfy.rig import WHOLE, prompt
from tests.support import daemon, workflows
from tests.support.comfyui import ComfyServer, Prompt
from tests.support.daemon import Daemon
from tests.support.workflows import Workflow

SIZE = 32
"""Height and width of the latent."""
FEW, FOREVER = 6, 5000
"""Steps of a run that ends, and of one that is cancelled."""
LIVELY = 0.12
"""Part of a node's area that a preview fills with colour at least; the bare node is grey but for its sockets."""


@pytest.fixture(scope="module")
def two_ranks(comfy: ComfyServer, comfy_state_dir: Path) -> Iterator[Daemon]:
    """A daemon with two CPU ranks over ComfyUI's own models."""
    with daemon.running(comfy.base.parent / "models", comfy_state_dir, ranks=2, plan="ulysses=2,ring=1") as started:
        yield started


def sampling(steps: int) -> Prompt:
    """A KSampler and a SaveLatent over our loader."""

    def build(w: Workflow) -> None:
        w.save(w.sample(w.model(), steps=steps, cfg=1.0, latent_image=w.latent(3, height=SIZE, width=SIZE, scale=0.0)))

    return prompt(build, workflows.tutti_loader(FLUX))


def colour(picture: Image.Image) -> float:
    """The part of a picture that is neither dark nor grey."""
    _, saturation, value = picture.convert("HSV").split()
    lively = zip(saturation.tobytes(), value.tobytes(), strict=True)
    return sum(s > 40 and v > 40 for s, v in lively) / (picture.width * picture.height)


def final_events(editor: Editor) -> list[str]:
    return [kind for kind, _ in editor.events() if kind in FINAL_EVENTS]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_previews_are_seen_in_the_node_while_the_daemon_samples(
    open_editor: OpenEditor, two_ranks: Daemon, renderer: str
) -> None:
    editor = open_editor(renderer, **{"Comfy.Execution.PreviewMethod": "latent2rgb"})
    editor.load_prompt(sampling(FOREVER))
    sampler = editor.node_of("KSampler")
    assert colour(editor.picture(sampler)) < LIVELY, "control: without a preview"
    editor.queue()
    editor.wait_for_event(PREVIEW_EVENTS, count=3)
    editor.page.get_by_text(WHOLE).wait_for()
    seen = colour(editor.picture(sampler))
    assert final_events(editor) == [], "the picture was taken while the daemon sampled"
    assert seen > LIVELY
    assert editor.page.get_by_text("on 2 ranks").is_visible()
    editor.cancel()
    editor.wait_for_event(FINAL_EVENTS)
    assert final_events(editor) == ["execution_interrupted"]


def test_without_a_preview_method_nothing_is_drawn_in_the_node(open_editor: OpenEditor, two_ranks: Daemon) -> None:
    """Negative control: what is seen above are previews."""
    editor = open_editor("vue")
    editor.load_prompt(sampling(FEW))
    editor.queue()
    editor.wait_for_event(FINAL_EVENTS)
    assert [kind for kind, _ in editor.events() if kind in PREVIEW_EVENTS] == []
    assert colour(editor.picture(editor.node_of("KSampler"))) < LIVELY / 2


def test_a_run_from_the_page_ends_with_a_saved_latent_and_a_line_on_the_node(
    open_editor: OpenEditor, comfy: ComfyServer, two_ranks: Daemon
) -> None:
    def saved() -> set[Path]:
        return set((comfy.base / "output").rglob("*.latent"))

    before = saved()
    editor = open_editor("vue")
    editor.load_prompt(sampling(FEW))
    editor.queue()
    editor.wait_for_event(FINAL_EVENTS)
    assert final_events(editor) == ["execution_success"]
    editor.page.get_by_text(f"{FEW} steps at").wait_for()
    (file,) = saved() - before
    latent = load_file(file)["latent_tensor"]
    assert latent.shape == (1, 16, SIZE, SIZE)
    assert torch.isfinite(latent).all()
    assert latent.std() > 0.1
