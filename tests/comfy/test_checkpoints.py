"""Every kind of FLUX.1 checkpoint and conditioning that the loader announces, against stock ComfyUI with the same file."""

from __future__ import annotations

from typing import Any

import pytest

from tests.comfy.rig import CHECKPOINT, STEPWISE, WHOLE, Stock, changed_conditioning, plain, prompt, succeed
from tests.support import workflows
from tests.support.comfyui import ComfyServer
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.workflows import Build, Workflow

pytestmark = pytest.mark.usefixtures("two_ranks")


def check(stock: Stock, comfy: ComfyServer, build: Build, checkpoint: str = CHECKPOINT, way: str = WHOLE) -> None:
    """`build` over our loader goes `way` and gives what stock ComfyUI gives."""
    (expected,) = stock.latents(build, checkpoint)
    run = succeed(comfy, prompt(build, workflows.tutti_loader(checkpoint)))
    assert way in run.all_texts
    assert relative_error(comfy.latents(run)[0], expected) <= FP32_TOLERANCE


@pytest.mark.parametrize(
    "checkpoint",
    ["schnell.safetensors", "diffusers.safetensors", "bf16.safetensors", "fill.safetensors", "sub/folder.safetensors"],
)
@pytest.mark.parametrize(("sampler", "way"), [("euler", WHOLE), ("euler_ancestral", STEPWISE)])
def test_a_checkpoint_of_another_kind_gives_the_latent_of_stock_comfyui(
    stock: Stock, comfy: ComfyServer, checkpoint: str, sampler: str, way: str
) -> None:
    check(stock, comfy, plain(sampler_name=sampler), checkpoint, way)


def test_a_gguf_file_is_listed_and_gives_the_latent_of_its_numbers(stock: Stock, comfy: ComfyServer) -> None:
    info = comfy.get_json("/object_info/TuttiLoadDiffusionModel")["TuttiLoadDiffusionModel"]
    assert "q8.gguf" in info["input"]["required"]["unet_name"][1]["options"]
    (expected,) = stock.latents(plain(), "q8-as-numbers.safetensors")
    run = succeed(comfy, prompt(plain(), workflows.tutti_loader("q8.gguf", weight_dtype="fp32")))
    assert relative_error(comfy.latents(run)[0], expected) <= FP32_TOLERANCE
    (unpacked,) = stock.latents(plain())
    assert relative_error(unpacked, expected) > 100 * FP32_TOLERANCE, "the control: packing loses something"


def test_fill_gets_its_picture_and_mask(stock: Stock, comfy: ComfyServer) -> None:
    with_picture = changed_conditioning("concat")
    check(stock, comfy, with_picture, "fill.safetensors")
    (bare,) = stock.latents(plain(), "fill.safetensors")
    (filled,) = stock.latents(with_picture, "fill.safetensors")
    assert relative_error(bare, filled) > 1e-3, "the picture must matter, or the case shows nothing"


@pytest.mark.parametrize(("sampler", "way"), [("euler", WHOLE), ("euler_ancestral", STEPWISE)])
def test_a_missing_pooled_vector_and_a_missing_guidance_are_honoured(
    stock: Stock, comfy: ComfyServer, sampler: str, way: str
) -> None:
    def build(w: Workflow) -> None:
        bare = w.link("FluxDisableGuidance", conditioning=w.text(1, pooled=False))
        w.save(w.sample(w.model(), positive=bare, cfg=1.0, sampler_name=sampler))

    check(stock, comfy, build, way=way)


@pytest.mark.parametrize("method", ["offset", "index", "uxo/uno"])
def test_several_reference_pictures_are_placed_as_comfyui_places_them(
    stock: Stock, comfy: ComfyServer, method: str
) -> None:
    def build(w: Workflow) -> None:
        one = w.link("ReferenceLatent", conditioning=w.text(1), latent=w.latent(4, height=12, width=10))
        two = w.link("ReferenceLatent", conditioning=one, latent=w.latent(5, height=7, width=16))
        placed = w.link("FluxKontextMultiReferenceLatentMethod", conditioning=two, reference_latents_method=method)
        w.save(w.sample(w.model(), positive=placed, cfg=1.0))

    check(stock, comfy, build)


def in_low_precision(dtype: str, **sampling: Any) -> Build:
    """Stock ComfyUI computing in `dtype`: on a CPU it does so only when a node asks for it."""

    def build(w: Workflow) -> None:
        w.save(w.sample(w.link("ModelComputeDtype", model=w.model(), dtype=dtype), **sampling))

    return build


@pytest.mark.parametrize("sampling", [{"cfg": 1.0}, {"cfg": 4.0}, {"sampler_name": "euler_ancestral"}], ids=str)
def test_bf16_is_as_near_to_stock_fp32_as_stock_bf16(
    stock: Stock, comfy: ComfyServer, sampling: dict[str, Any]
) -> None:
    """At most 1.1 times as far. Both are far: bf16 cannot hold the timestep's embedding."""
    (exact,) = stock.latents(plain(**sampling))
    (theirs,) = stock.latents(in_low_precision("bf16", **sampling))
    run = succeed(comfy, prompt(plain(**sampling), workflows.tutti_loader(CHECKPOINT, weight_dtype="bf16")))
    (ours,) = comfy.latents(run)
    assert relative_error(ours, exact) <= 1.1 * relative_error(theirs, exact)
    assert relative_error(ours, theirs) < 0.1 * relative_error(theirs, exact), (
        "the control: it is bf16's error, not ours"
    )


def test_the_explicit_sampler_gives_what_ksampler_gives(stock: Stock, comfy: ComfyServer) -> None:
    (expected,) = stock.latents(plain(cfg=3.0))

    def build(w: Workflow) -> None:
        inputs = {
            "seed": 11,
            "steps": workflows.STEPS,
            "cfg": 3.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        }
        w.save(
            w.link(
                "TuttiSampler",
                model=w.model(),
                positive=w.text(1),
                negative=w.text(2),
                latent_image=w.latent(3, scale=0.0),
                **inputs,
            )
        )

    run = succeed(comfy, prompt(build))
    assert WHOLE in run.all_texts
    assert relative_error(comfy.latents(run)[0], expected) <= FP32_TOLERANCE


def test_a_prompt_that_changed_changes_the_latent(stock: Stock, comfy: ComfyServer) -> None:
    """Negative control of every comparison here: the measure sees a different prompt."""
    (expected,) = stock.latents(plain())

    def build(w: Workflow) -> None:
        w.save(w.sample(w.model(), positive=w.text(99)))

    run = succeed(comfy, prompt(build))
    assert relative_error(comfy.latents(run)[0], expected) > 100 * FP32_TOLERANCE
