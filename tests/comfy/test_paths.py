"""Which way a run goes, and why: everything outside the whitelist runs step by step, equally exact, and the node names the reason."""

from __future__ import annotations

from typing import Any

import pytest

from tests.comfy.rig import (
    CHECKPOINT,
    STEPWISE,
    WHOLE,
    Stock,
    changed_conditioning,
    changed_model,
    plain,
    prompt,
    succeed,
)
from tests.support.comfyui import ComfyServer
from tests.support.daemon import Daemon
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.workflows import Build, Link, Loader, Workflow, tutti_loader

pytestmark = pytest.mark.usefixtures("two_ranks")

KEPT = {
    # change of the MODEL -> what the node must name
    "sampler_cfg_function": "sampler_cfg_function",
    "sampler_post_cfg_function": "sampler_post_cfg_function",
    "sampler_pre_cfg_function": "sampler_pre_cfg_function",
    "sampler_calc_cond_batch_function": "sampler_calc_cond_batch_function",
    "model_function_wrapper": "model_function_wrapper",
    "disable_cfg1_optimization": "disable_cfg1_optimization",
    "denoise_mask_function": "denoise_mask_function",
    "somebody_elses_option": "somebody_elses_option",
    "outer_sample": "a wrapper around outer_sample",
    "prepare_sampling": "a wrapper around prepare_sampling",
    "sampler_sample": "a wrapper around the sampler",
    "predict_noise": "a wrapper around predict_noise",
    "calc_cond_batch": "a wrapper around calc_cond_batch",
    "apply_model": "a wrapper around apply_model",
    "diffusion_model": "a wrapper around diffusion_model",
    "on_cleanup": "on_cleanup",
    "wrapper_with_state": "a wrapper around diffusion_model",
    "concat_keys": "concat_keys",
    "OwnNoise": "OwnNoise",
}
CONDITIONING = {
    "area": "area",
    "strength": "strength",
    "mask": "mask",
    "unheard_of": "unheard_of",
}
FASTER = {
    "sage": "attention patch skipped",
    "block_swap": "block swap skipped",
    "compiled_object": "torch.compile skipped",
}


def sampled(sigmas: str, *, record: bool = False, **changes: Any) -> Build:
    """Sampling with given sigmas, and perhaps a callback that wants every step."""

    def build(w: Workflow) -> None:
        inputs = {"model": w.model(), "positive": w.text(1), "latent": w.latent(3), "sigmas": sigmas, "record": record}
        w.save(w.link("TestSampler", **inputs, **changes))

    return build


def check(
    stock: Stock, comfy: ComfyServer, build: Build, reason: str, same_as: Build | None = None, loader: Loader | None = None,
) -> None:  # fmt: skip
    """`build` runs step by step because of `reason`, and gives what stock ComfyUI gives (for `same_as`, if given)."""
    (expected,) = stock.latents(same_as or build)
    run = succeed(comfy, prompt(build, loader))
    assert STEPWISE in run.all_texts
    assert WHOLE not in run.all_texts
    assert reason in run.all_texts
    (ours,) = comfy.latents(run)
    assert relative_error(ours, expected) <= FP32_TOLERANCE


@pytest.mark.parametrize("change", KEPT)
def test_a_change_of_the_model_that_runs_in_comfyui_is_honoured_step_by_step(
    stock: Stock, comfy: ComfyServer, change: str
) -> None:
    check(stock, comfy, changed_model(change), KEPT[change], same_as=plain())


@pytest.mark.parametrize(
    ("name", "plan"), [("apply_model", "ring=1,ulysses=2"), ("scale_latent_inpaint", "ulysses=2, ring=1")]
)
def test_a_replaced_method_of_the_model_is_honoured_step_by_step(
    stock: Stock, comfy: ComfyServer, name: str, plan: str
) -> None:
    """Over a MODEL of its own, because the method stays on it."""
    loader = tutti_loader(CHECKPOINT, plan=plan)
    reason = f"a node has replaced {name} of the model"
    check(stock, comfy, changed_model(f"replaced {name}"), reason, same_as=plain(), loader=loader)


def test_the_negative_prompt_is_asked_at_scale_1_when_a_node_wants_it(stock: Stock, comfy: ComfyServer) -> None:
    build = changed_model("disable_cfg1_optimization", cfg=1.0)
    check(stock, comfy, build, "disable_cfg1_optimization", same_as=plain(cfg=1.0))


@pytest.mark.parametrize("side", ["positive", "negative"])
@pytest.mark.parametrize("change", CONDITIONING)
def test_a_change_of_the_conditioning_is_honoured_step_by_step(
    stock: Stock, comfy: ComfyServer, change: str, side: str
) -> None:
    reason = f"the {side} conditioning has {CONDITIONING[change]}"
    if (change, side) == ("area", "negative"):  # ComfyUI gives the positive side a part of the same area
        reason = "the positive conditioning has 2 parts"
    check(stock, comfy, changed_conditioning(change, side), reason)


@pytest.mark.parametrize(
    ("sampler", "reason"), [("ddim", "has options"), ("dpm_2", "the sampler dpm_2"), ("euler_cfg_pp", "euler_cfg_pp")]
)
def test_other_samplers_run_step_by_step(stock: Stock, comfy: ComfyServer, sampler: str, reason: str) -> None:
    check(stock, comfy, plain(sampler_name=sampler), reason)


def test_a_sampler_with_options_runs_step_by_step(stock: Stock, comfy: ComfyServer) -> None:
    def build(w: Workflow) -> None:
        model = w.model()
        sigmas = w.link("BasicScheduler", model=model, scheduler="simple", steps=4, denoise=1.0)
        sampler = w.link("SamplerEulerAncestral", eta=0.0, s_noise=1.0)
        node = w.add(
            "SamplerCustom", model=model, add_noise=True, noise_seed=11, cfg=1.0, positive=w.text(1), negative=w.text(2),
            sampler=sampler, sigmas=sigmas, latent_image=w.latent(3, scale=0.0),
        )  # fmt: skip
        w.save([node, 0])

    check(stock, comfy, build, "the sampler euler_ancestral")


def dual_model(second: str) -> Build:
    """DualModelGuider: the negative prompt is asked of the checkpoint `second`."""

    def build(w: Workflow) -> None:
        model = w.model()
        other = w.link(w.loader.class_type, **{**w.loader.inputs, "unet_name": second})
        guider = w.link(
            "DualModelGuider", model=model, model_negative=other, positive=w.text(1), negative=w.text(2), cfg=3.0
        )
        node = w.add(
            "SamplerCustomAdvanced",
            noise=w.link("RandomNoise", noise_seed=11),
            guider=guider,
            sampler=w.link("KSamplerSelect", sampler_name="euler"),
            sigmas=w.link("BasicScheduler", model=model, scheduler="simple", steps=3, denoise=1.0),
            latent_image=w.latent(3, scale=0.0),
        )
        w.save([node, 0])

    return build


@pytest.mark.parametrize("second", ["sub/folder.safetensors", CHECKPOINT], ids=["another file", "the same file"])
def test_a_guider_over_two_models_asks_each_for_its_own_side(stock: Stock, comfy: ComfyServer, second: str) -> None:
    check(stock, comfy, dual_model(second), "the guider Guider_DualModel runs in ComfyUI")


def test_the_second_model_of_that_guider_counts(stock: Stock) -> None:
    """The control of the test above."""
    (other,), (same,) = (stock.latents(dual_model(name)) for name in ("sub/folder.safetensors", CHECKPOINT))
    assert relative_error(other, same) > 100 * FP32_TOLERANCE


@pytest.mark.parametrize("sigmas", ["0.5 0.7 0.2 0.0", "0.8 0.8 0.0", "1.2 0.6 0.0"])
def test_sigmas_that_do_not_simply_fall_run_step_by_step(stock: Stock, comfy: ComfyServer, sigmas: str) -> None:
    check(stock, comfy, sampled(sigmas), "the sigmas do not fall")


def test_a_callback_that_wants_every_step_gets_every_step(stock: Stock, comfy: ComfyServer) -> None:
    check(stock, comfy, sampled("1.0 0.7 0.3 0.0", record=True), "wants to see every step")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cfg": 3.0, "without_negative": True}, "the guider CFGGuider has no negative conditioning"),
        ({"replaced": True}, "a node has replaced sample of the sampler euler"),
    ],
    ids=["no negative", "replaced method"],
)
def test_an_odd_guider_or_sampler_runs_step_by_step(
    stock: Stock, comfy: ComfyServer, changes: dict[str, Any], reason: str
) -> None:
    check(stock, comfy, sampled("1.0 0.7 0.3 0.0", **changes), reason)


def test_the_same_sampling_without_that_callback_is_one_job(stock: Stock, comfy: ComfyServer) -> None:
    """The control of the cases above: it is the change that sends a run step by step, not the test's own node."""
    (expected,) = stock.latents(sampled("1.0 0.7 0.3 0.0"))
    run = succeed(comfy, prompt(sampled("1.0 0.7 0.3 0.0")))
    assert WHOLE in run.all_texts
    assert relative_error(comfy.latents(run)[0], expected) <= FP32_TOLERANCE


@pytest.mark.parametrize("change", FASTER)
@pytest.mark.parametrize(("sampler", "way"), [("euler", WHOLE), ("euler_ancestral", STEPWISE)])
def test_what_only_makes_a_local_network_faster_is_skipped_with_a_line(
    stock: Stock, comfy: ComfyServer, change: str, sampler: str, way: str
) -> None:
    (expected,) = stock.latents(plain(sampler_name=sampler))
    run = succeed(comfy, prompt(changed_model(change, sampler_name=sampler)))
    assert way in run.all_texts
    assert FASTER[change] in run.all_texts
    assert relative_error(comfy.latents(run)[0], expected) <= FP32_TOLERANCE


def test_comfyuis_own_torch_compile_node_is_skipped_with_a_line(stock: Stock, comfy: ComfyServer) -> None:
    (expected,) = stock.latents(plain())

    def build(w: Workflow) -> None:
        compiled: Link = w.link("TorchCompileModel", model=w.model(), backend="inductor")
        w.save(w.sample(compiled))

    run = succeed(comfy, prompt(build))
    assert WHOLE in run.all_texts
    assert "torch.compile skipped" in run.all_texts
    assert relative_error(comfy.latents(run)[0], expected) <= FP32_TOLERANCE


def test_a_plain_run_says_nothing_about_skipped_patches(comfy: ComfyServer, two_ranks: Daemon) -> None:
    """The control of the two tests above."""
    run = succeed(comfy, prompt(plain()))
    assert "skipped" not in run.all_texts
