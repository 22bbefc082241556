"""Every family through real servers: the same workflow over our loader gives stock ComfyUI's latent, and the group outlives what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pytest

from tests.comfy.rig import STEPWISE, WHOLE, Stock, succeed
from tests.comfy.served_families import EDITING, SERVED, Served
from tests.support import workflows
from tests.support.comfyui import ComfyServer, Prompt
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.workflows import Build, Loader, Workflow

pytestmark = pytest.mark.usefixtures("two_ranks")


def masked(w: Workflow) -> None:
    """The right half is drawn anew."""
    half = w.link(
        "MaskComposite",
        destination=w.link("SolidMask", value=0.0, width=128, height=128),
        source=w.link("SolidMask", value=1.0, width=64, height=128),
        x=64, y=0, operation="add",
    )  # fmt: skip
    w.save(w.sample(w.model(), latent_image=w.link("SetLatentNoiseMask", samples=w.latent(3), mask=half)))


CASES: Final[Mapping[str, tuple[Build, str]]] = {
    "text": (workflows.ksampler(), WHOLE),
    "unequal prompts": (workflows.unequal_prompts, WHOLE),
    "from a latent": (workflows.denoise_half, WHOLE),
    "masked": (masked, WHOLE),  # but see Served.masks_alone
    "call by call": (workflows.ksampler(sampler_name="uni_pc"), STEPWISE),
}
"""Name -> workflow, which way it goes."""

every_family = pytest.mark.parametrize("served", SERVED.values(), ids=SERVED)


def prompt(build: Build, loader: Loader, served: Served) -> Prompt:
    return workflows.build(
        build,
        loader,
        text_width=served.text_width,
        pooled_width=served.pooled_width,
        latent_shape=served.latent,
        text_mask=served.text_mask,
    )


@every_family
@pytest.mark.parametrize("case", CASES)
def test_a_family_gives_the_latent_of_stock_comfyui(
    case: str, served: Served, stock: Stock, comfy: ComfyServer
) -> None:
    build, path = CASES[case]
    if case == "masked" and served.masks_alone:
        path = STEPWISE
    theirs = succeed(stock.server, prompt(build, workflows.stock_loader(served.file), served))
    (expected,) = stock.server.latents(theirs)
    run = succeed(comfy, prompt(build, workflows.tutti_loader(served.file), served))
    (ours,) = comfy.latents(run)
    assert relative_error(ours, expected) <= FP32_TOLERANCE
    assert path in run.all_texts, run.all_texts


def with_pictures(served: Served) -> Build:
    """References, or a video that begins with a picture."""

    def build(w: Workflow) -> None:
        positive, negative = w.text(1), w.text(2)
        if served.is_video and served.mode:
            positive, negative = (
                w.link("TestVideoStart", conditioning=text, latent=w.latent(6), vision_tokens=served.vision_tokens)
                for text in (positive, negative)
            )
        else:
            positive = w.link("ReferenceLatent", conditioning=positive, latent=w.latent(6, height=10, width=6))
        w.save(w.sample(w.model(), positive=positive, negative=negative))

    return build


@pytest.mark.parametrize("served", EDITING.values(), ids=EDITING)
def test_pictures_beside_the_text_travel_too(served: Served, stock: Stock, comfy: ComfyServer) -> None:
    loaders = workflows.stock_loader(served.file), workflows.tutti_loader(served.file)
    theirs = succeed(stock.server, prompt(with_pictures(served), loaders[0], served))
    run = succeed(comfy, prompt(with_pictures(served), loaders[1], served))
    (expected,), (ours,) = stock.server.latents(theirs), comfy.latents(run)
    assert relative_error(ours, expected) <= FP32_TOLERANCE
    without = succeed(stock.server, prompt(CASES["text"][0], loaders[0], served))
    error = relative_error(stock.server.latents(without)[0], expected)
    assert error > 100 * FP32_TOLERANCE, "the control: the pictures matter"


@every_family
def test_the_comparison_sees_another_prompt(served: Served, stock: Stock, comfy: ComfyServer) -> None:
    """The negative control."""
    theirs = succeed(stock.server, prompt(CASES["text"][0], workflows.stock_loader(served.file), served))

    def other(w: Workflow) -> None:
        w.save(w.sample(w.model(), positive=w.text(9)))

    run = succeed(comfy, prompt(other, workflows.tutti_loader(served.file), served))
    error = relative_error(comfy.latents(run)[0], stock.server.latents(theirs)[0])
    assert error > 100 * FP32_TOLERANCE


@every_family
def test_a_latent_of_another_family_is_refused_and_the_group_goes_on(served: Served, comfy: ComfyServer) -> None:
    def wrong(w: Workflow) -> None:
        channels = 4 if served.latent[0] != 4 else 8
        latent = w.link(
            "TestLatent", seed=1, batch=1, channels=channels, frames=0, height=8, width=8, scale=1.0, nonce=w.nonce
        )
        w.save(w.sample(w.model(), latent_image=latent))

    run = comfy.run(prompt(wrong, workflows.tutti_loader(served.file), served))
    assert run.status == "error"
    assert run.error.startswith(f"Connect a latent for {served.family}"), run.error
    succeed(comfy, prompt(CASES["text"][0], workflows.tutti_loader(served.file), served))
