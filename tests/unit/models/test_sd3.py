"""Stable Diffusion 3: both namings, and what is refused. What it computes is compared with ComfyUI in the family parity tests."""

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
from tutti.backend.models.adapter import CallSpec
from tutti.backend.models.families.sd3 import Sd3
from tutti.backend.models.family import TransformerAdapter
from tutti.backend.models.registry import ResidentModel, load_model
from tutti.backend.models.tiny import Naming, write_tiny

from tests.support.families.sd3 import picture, small
from tests.support.meshes import single_rank_mesh
from tests.support.parity import FP32_TOLERANCE, relative_error

MEDIUM_3_5 = small(dual=(0,))
GOOD = CallSpec(x_shape=(2, 16, 7, 18), conditioning={"context": (2, 13, 64), "pooled": (2, 32)})


def load(path: Path) -> ResidentModel:
    return load_model(path, dtype=torch.float32, device=torch.device("cpu"), progress=lambda _: None)


def velocity(path: Path) -> Tensor:
    model = load(path)
    model.bind(single_rank_mesh())
    call = picture(size=(5, 7))
    return model.adapter.velocity(call.x, call.timestep, call.conditioning, {})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd3") / "tiny.safetensors"
    write_tiny(path, Sd3(), MEDIUM_3_5)
    return path


@pytest.fixture(scope="module")
def adapter(tiny: Path) -> TransformerAdapter:
    adapter = load(tiny).adapter
    assert isinstance(adapter, TransformerAdapter)
    return adapter


def with_conditioning(**changes: Any) -> CallSpec:
    merged = {**GOOD.conditioning, **changes}
    return replace(GOOD, conditioning={name: shape for name, shape in merged.items() if shape is not None})


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "transformer.", ""])
def test_both_namings_give_the_same_network(naming: Naming, prefix: str, tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_tiny(other, Sd3(), MEDIUM_3_5, naming=naming, prefix=prefix)
    assert relative_error(velocity(other), velocity(tiny)) <= FP32_TOLERANCE


def test_the_comparison_of_networks_notices_another_seed(tiny: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "other.safetensors", Sd3(), MEDIUM_3_5, seed=1)
    assert relative_error(velocity(tmp_path / "other.safetensors"), velocity(tiny)) > 100 * FP32_TOLERANCE


@pytest.mark.parametrize("geometry", [small(qk_norm=False), small(hidden=192, dual=(0, 2))])
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_the_geometry_is_read_off_the_shapes(naming: Naming, geometry: Any, tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.safetensors", Sd3(), geometry, naming=naming)
    model = load(tmp_path / "tiny.safetensors")
    assert isinstance(model.adapter, TransformerAdapter)
    assert model.adapter.geometry == geometry
    assert (model.family, model.num_heads) == ("sd3", geometry.hidden // 64)
    assert model.size_bytes == sum(tensor.nbytes for tensor in load_file(tmp_path / "tiny.safetensors").values())


@pytest.mark.parametrize(
    "name", ["context_processor.layers.0.attn.qkv.weight", "register", "controlnet_blocks.0.weight"]
)
def test_a_relative_is_refused(name: str, tiny: Path, tmp_path: Path) -> None:
    save_file({**load_file(tiny), name: torch.zeros(3)}, tmp_path / "relative.safetensors")
    with pytest.raises(UnsupportedFamily, match="Choose a checkpoint of a family"):
        load(tmp_path / "relative.safetensors")


def without_last_block(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("joint_blocks.1.")}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: {**tensors, "pos_embed": torch.zeros(1, 80, 128)}, "a square table of positions"),
        (lambda tensors: {name: x for name, x in tensors.items() if name != "pos_embed"}, "pos_embed is missing"),
        (lambda tensors: {**tensors, "x_embedder.proj.weight": torch.zeros(128, 16, 1, 1)}, "2x2 patches"),
        (without_last_block, "has 2 blocks, this one has 1"),
    ],
)
def test_a_checkpoint_that_comfyui_would_not_run_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], says: str, tiny: Path, tmp_path: Path
) -> None:
    save_file(change(load_file(tiny)), tmp_path / "changed.safetensors")
    with pytest.raises(BadCheckpoint, match=says):
        load(tmp_path / "changed.safetensors")


@pytest.mark.parametrize(
    "request_",
    [
        GOOD,
        with_conditioning(pooled=None),
        replace(GOOD, x_shape=(2, 16, 1, 1)),
        replace(GOOD, x_shape=(2, 16, 18, 18)),
    ],
)
def test_a_call_that_comfyui_would_run_is_accepted(request_: CallSpec, adapter: TransformerAdapter) -> None:
    adapter.check(request_)


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (replace(GOOD, x_shape=(2, 16, 3, 8, 8)), WrongFamily, "Use an image latent of SD3"),
        (replace(GOOD, x_shape=(2, 4, 8, 8)), WrongFamily, "got 4 channels, this checkpoint takes 16"),
        (replace(GOOD, x_shape=(2, 16, 8, 19)), BadRequest, "Use a smaller latent: got 8x19, .* for 18x18"),
        (replace(GOOD, timestep_shape=(2, 3)), BadRequest, "one timestep per picture"),
        (with_conditioning(context=None), BadRequest, "Connect a text conditioning"),
        (
            with_conditioning(context=(2, 13, 48)),
            WrongFamily,
            "Use the text encoders that belong to Stable Diffusion 3",
        ),
        (with_conditioning(pooled=(2, 48)), WrongFamily, "Use the text encoders that belong to Stable Diffusion 3"),
        (with_conditioning(guidance=(2,)), UnsupportedInput, "Disconnect what gives guidance"),
        (replace(GOOD, options={"skip": 1}), UnsupportedInput, "Disconnect what sets skip"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(
    request_: CallSpec, error: type[TuttiError], says: str, adapter: TransformerAdapter
) -> None:
    with pytest.raises(error, match=says):
        adapter.check(request_)
