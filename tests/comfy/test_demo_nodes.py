"""The demo model in a real ComfyUI: from text to a saved picture with nothing but what ships, and what is said when an input is bad."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tutti.backend.assets.files import AUTOENCODER, FOLDER, TRANSFORMER, shipped_file
from tutti.backend.assets.prompt import parse
from tutti.backend.demo.autoencoder import decode, load_autoencoder

from tests.comfy.rig import MAIN_VERSION, WHOLE, Stock, needs, succeed
from tests.support import comfyui, workflows
from tests.support.comfyui import REPOSITORY, ComfyServer, Prompt, Run
from tests.support.daemon import Daemon
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.workflows import Link, Loader, Workflow

TEXT = "a large red circle at the top left and a small blue star on a grey background"
SIDE = 128
FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159
"""ComfyUI saves FLUX.1's latents as its VAE takes them."""
DEMO = Loader(class_type="TuttiDemoLoader", inputs={"plan": "auto"})
"""Its second output is the VAE."""


def demo(
    text: str = TEXT,
    *,
    negative: str = "",
    guidance: float = 3.0,
    loader: Loader = DEMO,
    seed: int = 1,
    **sampling: Any,
) -> Prompt:
    """The demo's workflow up to the latent; with the demo's loader up to the saved picture too. Another loader runs in stock ComfyUI, which
    is given the prompts as numbers: it has no node for them."""
    w = Workflow(loader=loader, text_width=0, pooled_width=0)
    model, vae = w.model(), ["1", 1]

    def conditioning(said: str) -> Link:
        if loader is DEMO:
            return w.link("TuttiDemoPrompt", text=said, guidance=guidance)
        prompt = parse(said)
        numbers = {"context": prompt.context(), "pooled": prompt.pooled(), "guidance": guidance}
        return w.link("TestGivenConditioning", numbers=json.dumps(numbers))

    positive, negative = conditioning(text), conditioning(negative)
    latent = w.link("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1)
    chosen = {"steps": 4, "cfg": 1.0} | sampling
    sampled = w.sample(model, positive=positive, negative=negative, latent_image=latent, seed=seed, **chosen)
    w.save(sampled)
    if loader is DEMO:
        w.add("SaveImage", images=w.link("VAEDecode", samples=sampled, vae=vae), filename_prefix="demo")
    return w.prompt


def picture(server: ComfyServer, run: Run) -> Image.Image:
    """What SaveImage wrote."""
    ((entry,),) = [output["images"] for output in run.outputs.values() if "images" in output]
    with Image.open(server.base / "output" / entry["subfolder"] / entry["filename"]) as found:
        return found.convert("RGB")


@pytest.mark.usefixtures("two_ranks")
def test_text_becomes_a_picture_with_nothing_but_what_ships(comfy: ComfyServer) -> None:
    run = succeed(comfy, demo(seed=11))
    assert WHOLE in run.all_texts
    drawn = picture(comfy, run)
    assert drawn.size == (SIDE, SIDE)
    # The same as `tutti demo` decodes: one decoder here, one in ComfyUI.
    (latent,) = comfy.latents(run)
    in_model_space = (latent - FLUX_SHIFT) * FLUX_SCALE
    expected = decode(load_autoencoder(shipped_file(AUTOENCODER)), in_model_space)[0].numpy()
    assert np.abs(np.asarray(drawn).astype(int) - expected.astype(int)).max() <= 2
    assert expected.std() > 10, "never one colour all over"


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("sampling", [{}, {"cfg": 3.0, "guidance": 1.0}], ids=["cfg 1", "with a negative prompt"])
def test_the_daemons_copy_gives_what_stock_comfyui_gives(
    stock: Stock, comfy: ComfyServer, models: Path, sampling: dict[str, Any]
) -> None:
    """Guided by the model, or by the sampler. Not by both: a change of the noise by 1e-7, a last bit, then grows to 2e-5 within these four steps,
    and no two correct programs agree."""
    link = models / "diffusion_models" / "demo-for-stock.safetensors"
    link.symlink_to(FOLDER / "models" / TRANSFORMER)
    try:
        wanted = demo(seed=12, loader=workflows.stock_loader(link.name), **sampling)
        (expected,) = stock.server.latents(succeed(stock.server, wanted))
    finally:
        link.unlink()
    (ours,) = comfy.latents(succeed(comfy, demo(seed=12, **sampling)))
    assert relative_error(ours, expected) <= FP32_TOLERANCE
    (other,) = comfy.latents(succeed(comfy, demo("a small green heart", seed=12, **sampling)))
    assert relative_error(other, expected) > 100 * FP32_TOLERANCE, "the control: the prompt matters"


@pytest.mark.usefixtures("two_ranks")
def test_a_size_that_the_model_was_not_taught_is_named_on_the_sampler(comfy: ComfyServer) -> None:
    prompt = demo(seed=15, steps=1)
    for node in prompt.values():
        if node["class_type"] == "EmptySD3LatentImage":
            node["inputs"]["width"] = 384
    said = succeed(comfy, prompt).all_texts
    assert "taught pictures with sides of 128 to 256 pixels, and 384 x 128 will look worse" in said
    assert "will look worse" not in succeed(comfy, demo(seed=16, steps=1)).all_texts


@pytest.mark.usefixtures("two_ranks")
def test_words_without_effect_are_named_on_the_node(comfy: ComfyServer) -> None:
    text = "a red monkey and a blue star and a green heart and a white ring on a pink background"
    run = succeed(comfy, demo(text, seed=13, negative=" "))  # which no other test has: ComfyUI runs a node once
    assert "Tutti: red | blue star | green heart" in run.all_texts
    assert "does not know them: monkey, pink." in run.all_texts
    assert "3 objects and 20 words: white, ring." in run.all_texts
    assert "Tutti: no words: an empty prompt" in run.all_texts, "the negative side, which is no mistake"


def test_a_prompt_of_unknown_words_is_refused_before_anything_is_sampled(comfy: ComfyServer, two_ranks: Daemon) -> None:
    finished = two_ranks.status().finished
    run = comfy.run(demo("an elephant", seed=14))
    assert run.status == "error"
    assert run.error.startswith("Use words that the demo model knows, such as 'a large red circle")
    assert two_ranks.status().finished == finished


@pytest.mark.parametrize("plan", ["ulysses", "two ranks"])
def test_a_plan_that_is_none_is_refused_before_anything_is_queued(comfy: ComfyServer, plan: str) -> None:
    run = comfy.run(demo(loader=Loader(class_type="TuttiDemoLoader", inputs={"plan": plan})))
    assert run.status == "refused"
    assert "Set plan to auto or to degrees" in run.error


@pytest.mark.parametrize("guidance", [0.5, 5.5])
def test_guidance_that_was_never_taught_is_refused(comfy: ComfyServer, guidance: float) -> None:
    prompt = demo()
    for node in prompt.values():
        if node["class_type"] == "TuttiDemoPrompt":
            node["inputs"]["guidance"] = guidance
    assert comfy.run(prompt).status == "refused"


@pytest.mark.parametrize(
    ("name", "harm", "said"), [(TRANSFORMER, "flip", "damaged"), (AUTOENCODER, "flip", "damaged"), (AUTOENCODER, "remove", "missing")]
)  # fmt: skip
def test_a_shipped_file_that_is_not_whole_stops_the_run_by_name(
    tmp_path: Path, name: str, harm: str, said: str
) -> None:
    """In a copy of the pack; no daemon runs, and none is asked."""
    needs(MAIN_VERSION)
    pack = tmp_path / "copy"
    left_out = shutil.ignore_patterns(".*", "tests", "docs", "workflows", "benchmarks", "__pycache__")
    shutil.copytree(REPOSITORY, pack, ignore=left_out, symlinks=True)
    path = pack / "backend" / "assets" / "models" / name
    if harm == "remove":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
    environment = {"TUTTI_STATE_DIR": str(tmp_path / "state"), "TUTTI_START_DAEMON": "0"}
    with comfyui.running(
        MAIN_VERSION, tmp_path / "base", packs={"tutti": pack}, extra_environment=environment
    ) as server:
        run = server.run(demo())
    assert run.status == "error"
    assert run.error == f"Install Tutti again: {Path(name).name}, a file of its demo model, is {said}."
