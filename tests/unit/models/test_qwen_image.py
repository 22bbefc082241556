"""Qwen-Image: the files that are read, and the calls that are refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tutti.backend.errors import BadCheckpoint, BadRequest, TuttiError, UnsupportedFamily, UnsupportedInput, WrongFamily
from tutti.backend.models.adapter import CallSpec
from tutti.backend.models.families.qwen_image import QwenImage, QwenImageGeometry
from tutti.backend.models.family import TransformerAdapter
from tutti.backend.models.registry import load_model
from tutti.backend.models.tiny import write_tiny

from tests.support.calls import draw
from tests.support.meshes import single_rank_mesh
from tests.support.parity import FP32_TOLERANCE, relative_error

CPU: Final = torch.device("cpu")
GEOMETRY: Final = QwenImageGeometry(hidden=128, depth=1, context_dim=32)
VARIANTS: Final = {
    "plain": GEOMETRY,
    "marked": replace(GEOMETRY, marked=True),
    "layered": replace(GEOMETRY, layered=True),
    "layered and marked": replace(GEOMETRY, layered=True, marked=True),
}
GOOD: Final = CallSpec(x_shape=(2, 16, 1, 11, 9), conditioning={"context": (2, 13, 32)})
REFERENCE: Final = (1, 16, 1, 8, 8)


def load(path: Path) -> TransformerAdapter:
    model = load_model(path, dtype=torch.float32, device=CPU, progress=lambda _: None)
    assert model.family == "qwen_image"
    assert isinstance(model.adapter, TransformerAdapter)
    model.bind(single_rank_mesh())
    return model.adapter


def velocity(adapter: TransformerAdapter, *, method: str = "") -> Tensor:
    call = draw(
        (1, 16, 1, 6, 5),
        {"context": (1, 3, 32), "ref_latents.0": REFERENCE},
        options={"ref_latents_method": method} if method else None,
    )
    return adapter.velocity(call.x, call.timestep, call.conditioning, call.options)


def masked_velocity(adapter: TransformerAdapter, mask: Tensor) -> Tensor:
    call = draw((2, 16, 1, 6, 5), {"context": (2, mask.shape[1], 32)})
    return adapter.velocity(call.x, call.timestep, {**call.conditioning, "attention_mask": mask}, {})


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    write_tiny(path, QwenImage(), GEOMETRY)
    return path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> TransformerAdapter:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny(path, QwenImage(), GEOMETRY)
    return load(path)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "transformer."])
def test_every_prefix_gives_the_same_network_and_another_seed_another(prefix: str, tiny: Path, tmp_path: Path) -> None:
    """Authors, ComfyUI and diffusers name the parameters alike: there is no second naming."""
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    write_tiny(same, QwenImage(), GEOMETRY, prefix=prefix)
    write_tiny(other, QwenImage(), GEOMETRY, prefix=prefix, seed=1)
    expected = velocity(load(tiny))
    assert relative_error(velocity(load(same)), expected) <= FP32_TOLERANCE
    assert relative_error(velocity(load(other)), expected) > 100 * FP32_TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_geometry_is_read_off_the_tensors(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    write_tiny(path, QwenImage(), VARIANTS[variant])
    assert load(path).geometry == VARIANTS[variant]


@pytest.mark.parametrize(
    ("variant", "method"),
    [
        ("plain", "index"),
        ("marked", "index_timestep_zero"),
        ("layered", "negative_index"),
        ("layered and marked", "negative_index"),
    ],
)
def test_a_checkpoint_has_a_reference_method_of_its_own(variant: str, method: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    write_tiny(path, QwenImage(), VARIANTS[variant])
    adapter = load(path)
    found = velocity(adapter)
    alike = {
        name
        for name in ("index", "negative_index", "index_timestep_zero", "offset")
        if relative_error(velocity(adapter, method=name), found) <= FP32_TOLERANCE
    }
    # One reference alone stands in the same place by "offset" as by "index".
    assert alike == ({"index", "offset"} if method == "index" else {method})


def mage_flow(tensors: dict[str, Tensor]) -> None:
    tensors["img_in.weight"] = torch.zeros(128, 128)
    tensors["proj_out.weight"] = torch.zeros(128, 128)
    tensors["proj_out.bias"] = torch.zeros(128)


def narrow_heads(tensors: dict[str, Tensor]) -> None:
    tensors["img_in.weight"] = torch.zeros(192, 64)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda t: t.update({"controlnet_blocks.0.weight": torch.zeros(1)}), UnsupportedFamily, "Choose a checkpoint"),
        (lambda t: t.update({"control_img_in.weight": torch.zeros(1)}), UnsupportedFamily, "Choose a checkpoint"),
        (mage_flow, BadCheckpoint, "64 numbers per token, this one is 128 wide with 128 inputs and 128 outputs"),
        (narrow_heads, BadCheckpoint, "128-wide heads .* this one is 192 wide"),
        (lambda t: t.pop("transformer_blocks.0.attn.norm_q.weight"), BadCheckpoint, "norm_q.weight, missing"),
        (lambda t: t.update({"vace_blocks.0.weight": torch.zeros(1)}), BadCheckpoint, "not part of the network"),
    ],
)
def test_relatives_and_incomplete_files_are_refused(
    change: Callable[[dict[str, Tensor]], object], error: type[TuttiError], says: str, tiny: Path
) -> None:
    tensors = load_file(tiny)
    change(tensors)
    changed = tiny.with_name("changed.safetensors")
    save_file(tensors, changed)
    with pytest.raises(error, match=says):
        load(changed)


def with_conditioning(**changes: Any) -> CallSpec:
    named = {name.replace("__", "."): shape for name, shape in changes.items()}
    merged: Mapping[str, Any] = {**GOOD.conditioning, **named}
    return replace(GOOD, conditioning={name: shape for name, shape in merged.items() if shape is not None})


def test_what_comfyui_gives_is_accepted(adapter: TransformerAdapter) -> None:
    for request in (
        GOOD,
        with_conditioning(attention_mask=(2, 13)),
        with_conditioning(ref_latents__0=REFERENCE, ref_latents__1=(2, 16, 3, 20, 7)),
        replace(with_conditioning(ref_latents__0=REFERENCE), options={"ref_latents_method": "negative_index"}),
        replace(GOOD, options={"ref_latents_method": "of no use without references"}),
    ):
        adapter.check(request)


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (replace(GOOD, x_shape=(2, 16, 11, 9)), WrongFamily, r"takes \[batch, channels, frames, height, width\]"),
        (replace(GOOD, x_shape=(2, 48, 1, 11, 9)), WrongFamily, "got 48 channels, this checkpoint takes 16"),
        (replace(GOOD, timestep_shape=(2, 1)), BadRequest, "Give one timestep per picture"),
        (with_conditioning(context=None), BadRequest, "Connect a text conditioning"),
        (with_conditioning(context=(2, 13, 4096)), WrongFamily, "Use the text encoder that belongs to Qwen-Image"),
        (
            with_conditioning(attention_mask=(2, 12)),
            BadRequest,
            "Give attention_mask for every token of context: got 12, there are 13",
        ),
        (with_conditioning(attention_mask=(2, 13, 13)), WrongFamily, r"takes \[batch, tokens of context\]"),
        (with_conditioning(attention_mask=(1, 13)), BadRequest, "Give attention_mask for every picture"),
        (with_conditioning(ref_latents__0=(1, 16, 8, 8)), WrongFamily, "Encode the reference image with the VAE of"),
        (with_conditioning(ref_latents__1=REFERENCE), BadRequest, "without gaps"),
        (with_conditioning(additional_t_cond=(2,)), UnsupportedInput, "Disconnect what gives additional_t_cond"),
        (
            replace(with_conditioning(ref_latents__0=REFERENCE), options={"ref_latents_method": "uso"}),
            UnsupportedInput,
            "Choose the reference method offset, index, uxo, index_timestep_zero or negative_index",
        ),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(
    request_: CallSpec, error: type[TuttiError], says: str, adapter: TransformerAdapter
) -> None:
    with pytest.raises(error, match=says):
        adapter.check(request_)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.tensor([[1.0, 0.0], [1.0, 1.0]]), "Give attention_mask as whole numbers"),
        (torch.tensor([[0, 0], [1, 1]]), "Connect text for every picture"),
    ],
)
def test_masks_that_cannot_be_honoured_are_refused(mask: Tensor, says: str, adapter: TransformerAdapter) -> None:
    with pytest.raises(UnsupportedInput, match=says):
        adapter.check_values({"attention_mask": mask})
