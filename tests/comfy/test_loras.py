"""LoRAs over our MODEL, through ComfyUI's own loaders and ours: the latent is that of ComfyUI's own patched model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tutti.backend.models.checkpoint import open_checkpoint
from tutti.backend.models.families.flux import Flux
from tutti.backend.models.tiny import write_tiny

from tests.comfy.rig import CHECKPOINT, LORAS, ODD_LORA, STEPWISE, WHOLE, Stock, prompt, succeed
from tests.comfy.served_families import SERVED
from tests.support import loras, workflows
from tests.support.comfyui import ComfyServer
from tests.support.families import ROWS
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.workflows import Build, Loader, Workflow

pytestmark = pytest.mark.usefixtures("two_ranks")

STOCK_NODE, OUR_NODE = "LoraLoaderModelOnly", "TuttiLoadLora"
NORMS, HUNYUAN = "norms.safetensors", "published-names.safetensors"
"""A LoRA for the norms of the usual checkpoint; and a HunyuanVideo as Tencent wrote it, with a LoRA of the same name in ComfyUI's names."""


def with_loras(*loras: tuple[str, float], node: str = STOCK_NODE, **sampling: Any) -> Build:
    def build(w: Workflow) -> None:
        model = w.model()
        for file, strength in loras:
            model = w.link(node, model=model, lora_name=file, strength_model=strength)
        w.save(w.sample(model, **sampling))

    return build


def check(stock: Stock, comfy: ComfyServer, build: Build, ours: Build | None = None, path: str = WHOLE) -> None:
    expected = stock.latents(build)
    run = succeed(comfy, prompt(ours or build))
    assert path in run.all_texts
    (latent,) = comfy.latents(run)
    assert relative_error(latent, expected[0]) <= FP32_TOLERANCE
    (without,) = stock.latents(with_loras())
    assert relative_error(latent, without) > 100 * FP32_TOLERANCE, "the control: the LoRA changes the picture"


def _video(server: ComfyServer, build: Build, loader: Loader) -> torch.Tensor:
    served = SERVED["hunyuan_video"]
    wanted = workflows.build(
        build, loader, text_width=served.text_width, pooled_width=served.pooled_width, latent_shape=served.latent
    )
    (latent,) = server.latents(succeed(server, wanted))
    return latent


@pytest.mark.parametrize("name", LORAS)
def test_comfyuis_own_loader_works_on_our_model(name: str, stock: Stock, comfy: ComfyServer) -> None:
    check(stock, comfy, with_loras((LORAS[name], 0.8)))


@pytest.mark.parametrize("name", LORAS)
def test_our_loader_gives_the_same(name: str, stock: Stock, comfy: ComfyServer) -> None:
    lora = (LORAS[name], 0.8)
    check(stock, comfy, with_loras(lora), with_loras(lora, node=OUR_NODE))


@pytest.fixture(scope="module")
def published_names(models: Path) -> None:
    """Files whose layers ComfyUI calls otherwise than the checkpoint does."""
    flux = Flux().geometry_of(open_checkpoint(models / "diffusion_models" / CHECKPOINT))
    save_file(loras.norm_diffs(flux), models / "loras" / NORMS)
    family, (row, *_) = ROWS["hunyuan_video"]
    write_tiny(models / "diffusion_models" / HUNYUAN, family, row.geometry, seed=3, respell=True)
    layers = loras.shapes(row.geometry, original=True, family=family)
    tensors = loras.lora(layers, "diffusion_model.{}".format, "lora_up.weight", "lora_down.weight", alpha=2.0)
    save_file(tensors | loras.norm_diffs(row.geometry, family), models / "loras" / HUNYUAN)


@pytest.mark.usefixtures("published_names")
@pytest.mark.parametrize("node", [STOCK_NODE, OUR_NODE])
def test_norms_that_the_checkpoint_calls_otherwise_are_changed(node: str, stock: Stock, comfy: ComfyServer) -> None:
    check(stock, comfy, with_loras((NORMS, 1.0)), with_loras((NORMS, 1.0), node=node))


@pytest.mark.usefixtures("published_names")
@pytest.mark.parametrize("node", [STOCK_NODE, OUR_NODE])
def test_layers_that_the_checkpoint_calls_otherwise_are_changed(node: str, stock: Stock, comfy: ComfyServer) -> None:
    wanted = with_loras((HUNYUAN, 0.8))
    expected, plain = (_video(stock.server, build, workflows.stock_loader(HUNYUAN)) for build in (wanted, with_loras()))
    latent = _video(comfy, with_loras((HUNYUAN, 0.8), node=node), workflows.tutti_loader(HUNYUAN))
    assert relative_error(latent, expected) <= FP32_TOLERANCE
    assert relative_error(expected, plain) > 100 * FP32_TOLERANCE, "the control: the LoRA changes the picture"


def test_several_at_once_with_negative_strength(stock: Stock, comfy: ComfyServer) -> None:
    both = (LORAS["kohya"], -0.6), (LORAS["LoKr"], 0.9)
    check(stock, comfy, with_loras(*both))
    check(stock, comfy, with_loras(*both), with_loras(*both, node=OUR_NODE))


def test_call_by_call_the_lora_counts_too(stock: Stock, comfy: ComfyServer) -> None:
    loras = with_loras((LORAS["kohya"], 1.0), sampler_name="uni_pc")
    expected = stock.latents(loras)
    run = succeed(comfy, prompt(loras))
    assert STEPWISE in run.all_texts
    assert relative_error(comfy.latents(run)[0], expected[0]) <= FP32_TOLERANCE


def test_taken_off_again_nothing_of_it_is_left(stock: Stock, comfy: ComfyServer) -> None:
    succeed(comfy, prompt(with_loras((LORAS["kohya"], 1.0))))
    (latent,) = comfy.latents(succeed(comfy, prompt(with_loras())))
    assert relative_error(latent, stock.latents(with_loras())[0]) <= FP32_TOLERANCE


def test_a_key_that_leads_to_nothing_stops_our_loaders_run_by_name(comfy: ComfyServer) -> None:
    run = comfy.run(prompt(with_loras((ODD_LORA, 1.0), node=OUR_NODE)))
    assert run.status == "error"
    assert run.error.startswith("Choose another LoRA: 1 of its")
    assert "lora_unet_double_blocks_7_img_attn_qkv.alpha" in run.error
    succeed(comfy, prompt(with_loras()))


def test_a_file_that_is_not_there_is_said_to_be_missing(comfy: ComfyServer) -> None:
    run = comfy.run(prompt(with_loras(("nothing.safetensors", 1.0), node=OUR_NODE)))
    assert run.status == "error"
    assert "nothing.safetensors" in run.error
