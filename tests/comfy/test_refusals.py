"""What would change the picture from inside the network stops the run with a remedy, on both ways, and the next run is fine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.comfy.rig import CHECKPOINT, LORAS, Stock, changed_conditioning, changed_model, plain, prompt, succeed
from tests.support import workflows
from tests.support.comfyui import ComfyServer, Run
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.workflows import Build, Workflow

pytestmark = pytest.mark.usefixtures("two_ranks")

INSIDE = {
    # change of the MODEL -> how the message begins, and what it must name
    "attn1_patch": ("Remove the node that sets patches", "attn1_patch"),
    "dit": ("Remove the node that sets patches_replace", "dit"),
    "double_block": ("Remove the node that sets patches", "double_block"),
    "rope_options": ("Remove the node that sets rope_options", "network"),
    "optimized_attention_override": ("Remove the node that sets optimized_attention_override", "network"),
    "message_attention": ("Remove the node that sets optimized_attention_override", "network"),
    "sparse_sage": ("Remove the node that sets optimized_attention_override", "network"),
    "pulid_ca": ("Remove the node that sets pulid_ca of the network", "network"),
    "forward": ("Remove the node that sets forward of the network", "network"),
    "unheard_of": ("Remove the node that sets unheard_of", "network"),
    "injection": ("Remove the node that sets an injection", "somebody"),
    "diffusion_model.img_in": ("Remove the node that sets an object patch", "diffusion_model.img_in"),
    "weights": ("Remove the node that changes this MODEL's weights", "LoRA"),
    "weight_wrapper": ("Remove the node that changes this MODEL's weights", "LoRA"),
    "network": ("Remove the node that reaches into the network", "double_blocks"),
    "saving": ("Load the file with ComfyUI's own loader to save", "no weights"),
    "merging": ("Load the file with ComfyUI's own loader to save", "no weights"),
}


def refused(
    comfy: ComfyServer, build: Build, begins: str, names: str = "", loader: workflows.Loader | None = None
) -> Run:
    """`build` stops with an error whose first words are `begins`."""
    run = comfy.run(prompt(build, loader))
    assert run.status == "error", f"{run.status} {run.all_texts}"
    assert run.error.startswith(begins), run.error
    assert names in run.error
    return run


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
@pytest.mark.parametrize("change", INSIDE)
def test_a_change_inside_the_network_is_refused(comfy: ComfyServer, change: str, sampler: str) -> None:
    begins, names = INSIDE[change]
    run = refused(comfy, changed_model(change, sampler_name=sampler), begins, names)
    assert comfy.latents(run) == []


@pytest.mark.parametrize("side", ["positive", "negative"])
@pytest.mark.parametrize(
    ("change", "begins"),
    [("control", "Remove the ControlNet"), ("hooks", "Remove the hooks"), ("attention_mask", "Remove")],
)
def test_what_conditioning_brings_into_the_network_is_refused(
    comfy: ComfyServer, change: str, begins: str, side: str
) -> None:
    refused(comfy, changed_conditioning(change, side), begins)


def test_a_lora_in_bypass_mode_is_refused_and_not_ignored(comfy: ComfyServer) -> None:
    def build(w: Workflow) -> None:
        patched = w.link("LoraLoaderBypassModelOnly", model=w.model(), lora_name=LORAS["kohya"], strength_model=1.0)
        w.save(w.sample(patched))

    refused(comfy, build, "Remove the node that reaches into the network", "LoRA")


@pytest.mark.parametrize(("sampler", "plan"), [("euler", "ring=1,ulysses=2"), ("euler_ancestral", "ulysses=2, ring=1")])
def test_a_hook_on_the_network_is_refused(comfy: ComfyServer, sampler: str, plan: str) -> None:
    """Over a MODEL of its own, because the hook stays on it."""
    loader = workflows.tutti_loader(CHECKPOINT, plan=plan)
    build = changed_model("forward hook", sampler_name=sampler)
    refused(comfy, build, "Remove the node that sets a hook on the network", loader=loader)


def test_saving_the_model_is_refused(comfy: ComfyServer) -> None:
    def build(w: Workflow) -> None:
        w.add("ModelSave", model=w.model(), filename_prefix="never")

    refused(comfy, build, "Load the file with ComfyUI's own loader to save")


def test_another_compute_dtype_is_set_on_the_loader(comfy: ComfyServer) -> None:
    def build(w: Workflow) -> None:
        w.save(w.sample(w.link("ModelComputeDtype", model=w.model(), dtype="bf16")))

    refused(comfy, build, "Set weight_dtype on the Tutti loader instead")


def test_a_latent_of_another_family_is_refused(comfy: ComfyServer) -> None:
    def build(w: Workflow) -> None:
        four = w.link("TestLatent", seed=1, batch=1, channels=4, height=16, width=16, scale=1.0)
        w.save(w.sample(w.model(), latent_image=four))

    refused(comfy, build, "Connect a latent for flux", "4 channels")


def test_a_text_width_that_does_not_fit_is_refused(comfy: ComfyServer) -> None:
    def build(w: Workflow) -> None:
        narrow = w.link("TestConditioning", seed=1, tokens=5, width=24, pooled_width=32)
        w.save(w.sample(w.model(), positive=narrow, cfg=1.0))

    run = comfy.run(prompt(build))
    assert run.status == "error"
    assert "24" in run.error
    assert "64" in run.error


@pytest.mark.parametrize(
    ("loader", "begins"),
    [
        ({"unet_name": "nowhere.safetensors"}, "Put the checkpoint into a models folder"),
        ({"unet_name": "../../etc/passwd"}, "Put the checkpoint into a models folder"),
        (
            {"unet_name": "another-family.safetensors"},
            "Load this file with ComfyUI's own loader: its family is AuraFlow",
        ),
        ({"unet_name": "no-model.safetensors"}, "Choose a diffusion model file"),
        (
            {"unet_name": "quantised.safetensors"},
            "Choose a checkpoint in another format: img_in.weight is stored as 'int3'",
        ),
        ({"unet_name": "cut-off.safetensors"}, ""),
        ({"unet_name": "damaged.safetensors"}, "Use a safetensors file"),
        ({"plan": "ulysses=3,ring=1"}, "Choose a plan for 2 rank"),
    ],
    ids=["unknown", "outside", "another family", "no model", "quantised", "cut off", "damaged", "impossible plan"],
)
def test_a_model_that_cannot_be_loaded_stops_the_run_with_a_remedy(
    comfy: ComfyServer, models: Path, loader: dict[str, str], begins: str
) -> None:
    inputs = {"unet_name": CHECKPOINT, **loader}
    name = inputs.pop("unet_name")
    run = refused(comfy, plain(), begins, loader=workflows.tutti_loader(name, **inputs))
    assert str(models) not in run.error, "an error tells no path of the daemon's machine"


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"weight_dtype": "fp8_e4m3fn"}, "Set weight_dtype to one of default"),
        ({"plan": "ulysses: two"}, "Set plan to auto or to degrees"),
    ],
)
def test_an_impossible_setting_is_refused_before_anything_is_queued(
    comfy: ComfyServer, inputs: dict[str, str], says: str
) -> None:
    run = comfy.run(prompt(plain(), workflows.tutti_loader(CHECKPOINT, **inputs)))
    assert run.status == "refused"
    assert says in run.error


def test_the_explicit_sampler_wants_a_negative_prompt_only_where_it_counts(comfy: ComfyServer) -> None:
    def build(cfg: float) -> Build:
        def without_negative(w: Workflow) -> None:
            inputs = {"seed": 1, "steps": 2, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
            latent = w.latent(3, scale=0.0)
            w.save(w.link("TuttiSampler", model=w.model(), positive=w.text(1), latent_image=latent, cfg=cfg, **inputs))

        return without_negative

    refused(comfy, build(4.0), "Connect a negative prompt, or set cfg to 1")
    succeed(comfy, prompt(build(1.0)))


def test_after_all_that_the_next_run_is_right(stock: Stock, comfy: ComfyServer) -> None:
    (expected,) = stock.latents(plain())
    run = succeed(comfy, prompt(plain()))
    assert relative_error(comfy.latents(run)[0], expected) <= FP32_TOLERANCE
