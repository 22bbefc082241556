"""Z-Image's checkpoints, what they are told apart from, and what a call may hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tutti.backend.errors import BadCheckpoint, BadRequest, TuttiError, UnsupportedFamily, UnsupportedInput, WrongFamily
from tutti.backend.models.adapter import Adapter, CallSpec
from tutti.backend.models.families.z_image import ZImage, ZImageGeometry
from tutti.backend.models.registry import ResidentModel, load_model
from tutti.backend.models.tiny import write_tiny

from tests.support.calls import draw
from tests.support.meshes import single_rank_mesh
from tests.support.parity import FP32_TOLERANCE, relative_error

GEOMETRY = ZImageGeometry(hidden=256, depth=1, depth_refiner=1, ffn_dim=96, time_dim=64, in_channels=16, context_dim=24)
GOOD = CallSpec(x_shape=(2, 16, 11, 9), conditioning={"context": (2, 13, 24)}, options={"num_tokens": 13})
BLOCK = "layers.0.{}.weight"

Tensors = dict[str, Tensor]


def load(path: Path, dtype: torch.dtype = torch.float32) -> ResidentModel:
    return load_model(path, dtype=dtype, device=torch.device("cpu"), progress=lambda _: None)


def velocity(path: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    model = load(path, dtype)
    model.bind(single_rank_mesh())
    call = draw((1, 16, 6, 5), {"context": (1, 3, 24)})
    return model.adapter.velocity(call.x, call.timestep, call.conditioning, {"num_tokens": 3})


def changed(path: Path, change: Callable[[Tensors], object]) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path.with_name("changed.safetensors"))
    return path.with_name("changed.safetensors")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    write_tiny(path, ZImage(), GEOMETRY)
    return path


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_both_namings_and_every_prefix_give_the_same_network(
    naming: Any, prefix: str, tiny: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    write_tiny(other, ZImage(), GEOMETRY, naming=naming, prefix=prefix)
    assert load(other).family == "z_image"
    assert relative_error(velocity(other), velocity(tiny)) <= FP32_TOLERANCE


def test_the_comparison_of_networks_notices_another_seed(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_tiny(other, ZImage(), GEOMETRY, seed=1)
    assert relative_error(velocity(other), velocity(tiny)) > 100 * FP32_TOLERANCE


def test_a_norm_that_no_network_reads_may_be_in_the_file_but_no_other_tensor(tiny: Path) -> None:
    expected = velocity(tiny)
    file = changed(tiny, lambda tensors: tensors.update({"norm_final.weight": torch.ones(256)}))
    assert velocity(file).equal(expected)
    file = changed(tiny, lambda tensors: tensors.update({"norm_first.weight": torch.ones(256)}))
    with pytest.raises(BadCheckpoint, match=r"norm_first\.weight"):
        load(file)


@pytest.mark.parametrize(
    "name",
    [
        "siglip_embedder.0.weight",
        "siglip_pad_token",
        "dec_net.cond_embed.weight",
        "__x0__",
        "clip_text_pooled_proj.0.weight",
        "control_layers.0.adaLN_modulation.0.weight",
        "layers.0.adaLN_modulation.1.weight",
    ],
)
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_a_relative_is_refused(name: str, naming: Any, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    write_tiny(path, ZImage(), GEOMETRY, naming=naming)
    file = changed(path, lambda tensors: tensors.update({name: torch.zeros(4)}))
    with pytest.raises(UnsupportedFamily, match="Choose a checkpoint of a family"):
        load(file)


@pytest.mark.parametrize("name", ["cap_pad_token", "x_pad_token"])
def test_a_file_without_the_tokens_that_fill_up_is_refused(name: str, tiny: Path) -> None:
    with pytest.raises(UnsupportedFamily):
        load(changed(tiny, lambda tensors: tensors.pop(name)))


def test_a_width_that_is_not_whole_heads_is_refused(tiny: Path) -> None:
    file = changed(tiny, lambda tensors: tensors.update({"x_embedder.weight": torch.zeros(192, 64)}))
    with pytest.raises(BadCheckpoint, match="whole 128-wide heads and 2x2 patches, this one is 192 wide"):
        load(file)


@pytest.mark.parametrize("name", [BLOCK.format("attention.out"), BLOCK.format("feed_forward.w2")])
def test_what_overflows_in_float16_stays_finite(name: str, tiny: Path) -> None:
    """As in ComfyUI; without that, the norm behind it makes infinity a NaN."""
    file = changed(tiny, lambda tensors: tensors.update({name: 3e5 * tensors[name]}))
    assert velocity(file, torch.float16).isfinite().all()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny(path, ZImage(), GEOMETRY)
    return load(path).adapter


def with_conditioning(**changes: Any) -> CallSpec:
    merged = {**GOOD.conditioning, **changes}
    return replace(GOOD, conditioning={name: shape for name, shape in merged.items() if shape is not None})


@pytest.mark.parametrize(
    "request_",
    [
        GOOD,
        with_conditioning(attention_mask=(2, 13)),
        replace(GOOD, options={}),
        replace(GOOD, options={"num_tokens": 7.0}),
        with_conditioning(context=(2, 3000, 24)),
    ],
)
def test_a_call_that_comfyui_would_run_is_accepted(request_: CallSpec, adapter: Adapter) -> None:
    adapter.check(request_)


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (replace(GOOD, x_shape=(2, 16, 1, 11, 9)), WrongFamily, "Use an image latent of Z-Image"),
        (replace(GOOD, x_shape=(2, 4, 11, 9)), WrongFamily, "got 4 channels, this checkpoint takes 16"),
        (replace(GOOD, timestep_shape=(2, 1)), BadRequest, "Give one timestep per picture"),
        (with_conditioning(context=None), BadRequest, "Connect a text conditioning"),
        (with_conditioning(context=(2, 13, 2304)), WrongFamily, "Use the text encoder that belongs to Z-Image"),
        (with_conditioning(context=(1, 13, 24)), BadRequest, "Give context for every picture"),
        (with_conditioning(attention_mask=(2, 1, 13)), WrongFamily, "Use the text encoder that belongs to Z-Image"),
        (with_conditioning(ref_latents=(2, 16, 11, 9)), UnsupportedInput, "Disconnect what gives ref_latents"),
        (with_conditioning(siglip_feats=(2, 4, 4, 24)), UnsupportedInput, "Disconnect what gives siglip_feats"),
        (with_conditioning(clip_text_pooled=(2, 24)), UnsupportedInput, "Disconnect what gives clip_text_pooled"),
        (replace(GOOD, options={"num_frames": 1}), UnsupportedInput, "Disconnect what sets num_frames"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(
    request_: CallSpec, error: type[TuttiError], says: str, adapter: Adapter
) -> None:
    with pytest.raises(error, match=says):
        adapter.check(request_)
