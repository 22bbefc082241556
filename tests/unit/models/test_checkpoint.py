"""Checkpoint files: what is read, and what is refused with the tensors named."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tutti.backend.errors import BadCheckpoint, UnsupportedFamily
from tutti.backend.models.family import TransformerAdapter
from tutti.backend.models.registry import ResidentModel, load_model

from tests.support.checkpoints import write_tiny_flux
from tests.support.flux_calls import FluxCall
from tests.support.meshes import single_rank_mesh
from tests.support.parity import FP32_TOLERANCE, relative_error

CPU = torch.device("cpu")
TINY = {"hidden": 128, "depth": 2, "depth_single": 1}
PREFIXES = ["", "model.diffusion_model.", "diffusion_model.", "model.", "transformer."]

Tensors = dict[str, Tensor]


def load(path: Path, dtype: torch.dtype = torch.float32) -> ResidentModel:
    return load_model(path, dtype=dtype, device=CPU, progress=lambda _: None)


def velocity(path: Path) -> Tensor:
    model = load(path)
    model.bind(single_rank_mesh())
    x, timestep, conditioning = FluxCall(height=6, width=4, tokens=3).tensors()
    return model.adapter.velocity(x, timestep, conditioning, {})


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    write_tiny_flux(path, **TINY)
    return path


def changed(path: Path, change: Callable[[Tensors], object]) -> Path:
    """The file with its tensors changed."""
    tensors = load_file(path)
    change(tensors)
    out = path.with_name("changed.safetensors")
    save_file(tensors, out)
    return out


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("format", ["bfl", "diffusers"])
def test_both_namings_and_every_prefix_give_the_same_network(
    format: str, prefix: str, tiny: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    write_tiny_flux(other, **TINY, format=format, prefix=prefix)  # type: ignore[arg-type]
    assert relative_error(velocity(other), velocity(tiny)) <= FP32_TOLERANCE


def test_norms_may_be_named_scale_or_weight(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_tiny_flux(other, **TINY, norm_leaf="weight")
    assert relative_error(velocity(other), velocity(tiny)) <= FP32_TOLERANCE


def test_the_comparison_of_networks_notices_another_seed(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_tiny_flux(other, **TINY, seed=1)
    assert relative_error(velocity(other), velocity(tiny)) > 100 * FP32_TOLERANCE


def test_other_models_in_the_same_file_are_left_alone(tiny: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in load_file(tiny).items()}
    save_file(
        {**tensors, "vae.decoder.conv_in.weight": torch.zeros(3), "text_encoders.t5xxl.shared.weight": torch.zeros(2)},
        whole,
    )
    assert relative_error(velocity(whole), velocity(tiny)) <= FP32_TOLERANCE


@pytest.mark.parametrize(
    "geometry",
    [
        {"hidden": 384, "depth": 1, "depth_single": 4, "guidance": False},
        {"hidden": 128, "depth": 3, "depth_single": 1, "in_channels": 96, "context_dim": 48, "pooled_dim": 24},
        {"hidden": 128, "depth": 1, "depth_single": 11},
    ],
)
@pytest.mark.parametrize("format", ["bfl", "diffusers"])
def test_the_geometry_is_read_off_the_shapes(format: str, geometry: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    written = write_tiny_flux(path, format=format, **geometry)  # type: ignore[arg-type]
    model = load(path)
    assert isinstance(model.adapter, TransformerAdapter)
    assert model.adapter.geometry == written
    assert (model.family, model.num_heads) == ("flux", written.hidden // 128)


def test_tensors_of_the_asked_dtype_stay_views_of_the_mapped_file(tiny: Path) -> None:
    model = load(tiny)
    assert isinstance(model.adapter, TransformerAdapter)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tiny) in line]
    ranges = [tuple(int(address, 16) for address in fields[0].split("-")) for fields in maps]
    copied = [
        name
        for name, parameter in model.adapter.network.named_parameters()
        if not any(start <= parameter.data_ptr() < end for start, end in ranges)
    ]
    # BFL's final modulation has its halves the other way round: the only tensors that have to be copied.
    assert copied == ["norm_out.linear.weight", "norm_out.linear.bias"]
    assert model.size_bytes == sum(tensor.nbytes for tensor in load_file(tiny).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_cast_to_the_asked_one(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    write_tiny_flux(path, **TINY, dtype=dtype)
    model = load(path, dtype=torch.bfloat16)
    assert isinstance(model.adapter, TransformerAdapter)
    assert {parameter.dtype for parameter in model.adapter.network.parameters()} == {torch.bfloat16}
    stored = load_file(path)["double_blocks.0.img_attn.qkv.weight"].to(torch.bfloat16)
    assert torch.equal(model.adapter.network.transformer_blocks[0].attn.to_k.weight, stored[128:256])


def test_progress_rises_to_one(tiny: Path) -> None:
    heard: list[float] = []
    load_model(tiny, dtype=torch.float32, device=CPU, progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_a_missing_tensor_is_named(tiny: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"single_blocks\.0\.linear2\.bias, missing"):
        load(changed(tiny, lambda tensors: tensors.pop("single_blocks.0.linear2.bias")))


def test_many_missing_tensors_are_counted_and_eight_of_them_named(tiny: Path) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("double_blocks.1.") and "norm" not in name]:
            del tensors[name]

    with pytest.raises(BadCheckpoint, match=r"20 tensor\(s\), double_blocks\.1\..* and others, missing") as caught:
        load(changed(tiny, drop))
    assert str(caught.value).count("double_blocks.1.") == 8


def test_an_unexpected_tensor_is_named(tiny: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"double_blocks\.0\.extra\.weight, not part of the network"):
        load(changed(tiny, lambda tensors: tensors.update({"double_blocks.0.extra.weight": torch.zeros(3)})))


def test_a_gap_between_blocks_is_noticed(tiny: Path) -> None:
    def move(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("double_blocks.1.")]:
            tensors[name.replace("double_blocks.1.", "double_blocks.2.")] = tensors.pop(name)

    with pytest.raises(BadCheckpoint, match="not part of the network"):
        load(changed(tiny, move))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("double_blocks.0.img_mlp.0.weight", (512, 127)),
        ("double_blocks.0.img_attn.qkv.weight", (383, 128)),
        ("double_blocks.0.img_attn.qkv.weight", (385, 128)),
        ("single_blocks.0.linear1.bias", (0,)),
        ("double_blocks.0.img_attn.norm.key_norm.scale", (64,)),
        ("double_blocks.0.img_attn.norm.key_norm.scale", ()),
    ],
)
def test_a_tensor_of_another_shape_is_named(name: str, shape: tuple[int, ...], tiny: Path) -> None:
    with pytest.raises(BadCheckpoint, match=name):
        load(changed(tiny, lambda tensors: tensors.update({name: torch.zeros(shape)})))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("img_in.weight", (130, 64)), ("img_in.weight", (128, 63)), ("img_in.weight", (128,)), ("img_in.weight", (0, 64))],
)
def test_a_geometry_that_cannot_be_is_refused(name: str, shape: tuple[int, ...], tiny: Path) -> None:
    with pytest.raises(BadCheckpoint, match="Choose another checkpoint"):
        load(changed(tiny, lambda tensors: tensors.update({name: torch.zeros(shape)})))


@pytest.mark.parametrize("name", ["txt_in.weight", "final_layer.linear.weight"])
def test_a_file_without_a_tensor_that_tells_the_geometry_is_incomplete(name: str, tiny: Path) -> None:
    with pytest.raises(BadCheckpoint, match=f"{name} is missing"):
        load(changed(tiny, lambda tensors: tensors.pop(name)))


@pytest.mark.parametrize(
    "names",
    [
        ["transformer_blocks.0.attn.to_q.weight"],
        ["double_blocks.0.img_attn.qkv.weight", "img_in.weight", "double_stream_modulation_img.lin.weight"],
        ["blocks.0.self_attn.q.weight"],
        ["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"],
        [],
    ],
)
def test_a_file_of_no_known_family_is_refused_with_the_families_listed(names: list[str], tmp_path: Path) -> None:
    save_file({name: torch.zeros(1) for name in names} or {"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedFamily, match="flux"):
        load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "relative",
    ["distilled_guidance_layer.in_proj.weight", "txt_norm.weight", "double_stream_modulation_img.lin.weight"],
)
def test_a_relative_of_flux_is_not_taken_for_it(relative: str, tiny: Path) -> None:
    with pytest.raises(UnsupportedFamily):
        load(changed(tiny, lambda tensors: tensors.update({relative: torch.zeros(1)})))


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1, -1000])
def test_a_truncated_file_is_refused(kept: int, tiny: Path) -> None:
    tiny.write_bytes(tiny.read_bytes()[:kept])
    with pytest.raises(BadCheckpoint, match=r"Download the checkpoint again|is cut off in its header"):
        load(tiny)


def test_a_safetensors_file_with_the_name_of_a_gguf_is_refused(tiny: Path) -> None:
    with pytest.raises(BadCheckpoint, match="does not begin like a GGUF file"):
        load(tiny.rename(tiny.with_name("model.gguf")))


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model"])
def test_other_formats_are_refused_by_name(name: str, tiny: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"Convert the checkpoint to \.safetensors"):
        load(tiny.rename(tiny.with_name(name)))


def test_a_pickle_in_disguise_is_refused_by_content(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"weights": list(range(1000))}))
    with pytest.raises(BadCheckpoint):
        load(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="single"):
        load(tmp_path)
    with pytest.raises(BadCheckpoint, match="gone"):
        load(tmp_path / "nothing.safetensors")


def test_messages_hold_no_path(tmp_path: Path) -> None:
    for name, content in (("a.safetensors", b"junk" * 100), ("b.ckpt", b""), ("c.safetensors", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(BadCheckpoint) as caught:
            load(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
        assert tmp_path.name not in str(caught.value)
