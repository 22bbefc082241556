"""What FLUX.1 refuses before anything runs, from shapes alone, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tutti.backend.errors import BadRequest, TuttiError, UnsupportedInput, WrongFamily
from tutti.backend.models.adapter import Adapter, CallSpec
from tutti.backend.models.registry import load_model

from tests.support.checkpoints import write_tiny_flux

GOOD = CallSpec(x_shape=(2, 16, 11, 9), conditioning={"context": (2, 13, 64), "pooled": (2, 32), "guidance": (2,)})


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny_flux(path, hidden=128, depth=1, depth_single=1)
    return load_model(Path(path), dtype=torch.float32, device=torch.device("cpu"), progress=lambda _: None).adapter


def with_conditioning(**changes: Any) -> CallSpec:
    merged = {**GOOD.conditioning, **changes}
    return replace(
        GOOD, conditioning={name.replace("__", "."): shape for name, shape in merged.items() if shape is not None}
    )


@pytest.mark.parametrize(
    "request_",
    [
        GOOD,
        with_conditioning(pooled=None),
        with_conditioning(guidance=None),
        with_conditioning(context=(2, 1, 64)),
        with_conditioning(pooled=(2, 2048)),
        with_conditioning(ref_latents__0=(1, 16, 8, 8), ref_latents__1=(2, 16, 5, 3)),
        replace(GOOD, options={"ref_latents_method": "index_timestep_zero"}),
        replace(with_conditioning(ref_latents__0=(1, 16, 8, 8)), options={"ref_latents_method": "uxo"}),
    ],
)
def test_a_call_that_comfyui_would_run_is_accepted(request_: CallSpec, adapter: Adapter) -> None:
    adapter.check(request_)


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (replace(GOOD, x_shape=(2, 16, 3, 11, 9)), WrongFamily, "Use an image latent of FLUX.1"),
        (replace(GOOD, x_shape=(2, 16, 0, 9)), WrongFamily, "Use an image latent"),
        (replace(GOOD, x_shape=(2, 4, 11, 9)), WrongFamily, "got 4 channels, this checkpoint takes 16"),
        (with_conditioning(context=None), BadRequest, "Connect a text conditioning"),
        (with_conditioning(context=(2, 64)), BadRequest, "Connect a text conditioning"),
        (with_conditioning(context=(2, 0, 64)), BadRequest, "Connect a text conditioning"),
        (
            with_conditioning(context=(2, 77, 2048)),
            WrongFamily,
            r"Use the text encoder that belongs to FLUX.1 .*got context of shape \[2, 77, 2048\], this FLUX.1 checkpoint takes \[batch, tokens, 64\]",
        ),
        (with_conditioning(context=(1, 13, 64)), BadRequest, "Give context for every picture"),
        (
            with_conditioning(pooled=(2, 31)),
            WrongFamily,
            r"Use the text encoder that belongs to FLUX.1 .*this FLUX.1 checkpoint takes \[batch, 32\]",
        ),
        (with_conditioning(pooled=(2,)), WrongFamily, "Use the text encoder"),
        (with_conditioning(pooled=(3, 32)), BadRequest, "Give pooled for every picture"),
        (with_conditioning(guidance=(1,)), BadRequest, "Give guidance for every picture"),
        (with_conditioning(guidance=(2, 1)), BadRequest, "one number per picture"),
        (with_conditioning(attention_mask=(2, 13)), UnsupportedInput, "Disconnect what gives attention_mask"),
        (with_conditioning(ref_latents__1=(1, 16, 8, 8)), BadRequest, "without gaps"),
        (with_conditioning(ref_latents__x=(1, 16, 8, 8)), BadRequest, "without gaps"),
        (
            with_conditioning(ref_latents__0=(1, 4, 8, 8)),
            WrongFamily,
            "Encode the reference image with the VAE of FLUX.1",
        ),
        (with_conditioning(ref_latents__0=(3, 16, 8, 8)), WrongFamily, "1 or 2"),
        (with_conditioning(ref_latents__0=(1, 16, 8)), WrongFamily, "Encode the reference"),
        (replace(GOOD, options={"patches": 1}), UnsupportedInput, "Disconnect what sets patches"),
        (
            replace(
                with_conditioning(ref_latents__0=(1, 16, 8, 8)), options={"ref_latents_method": "index_timestep_zero"}
            ),
            UnsupportedInput,
            "Choose the reference method offset, index or uxo",
        ),
        (
            replace(with_conditioning(ref_latents__0=(1, 16, 8, 8)), options={"ref_latents_method": 3}),
            UnsupportedInput,
            "Choose",
        ),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(
    request_: CallSpec, error: type[TuttiError], says: str, adapter: Adapter
) -> None:
    with pytest.raises(error, match=says):
        adapter.check(request_)
