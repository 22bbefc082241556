"""HunyuanVideo: which files are read, what is refused before anything runs, and text masks in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tutti.backend.errors import BadCheckpoint, BadRequest, TuttiError, UnsupportedFamily, UnsupportedInput, WrongFamily
from tutti.backend.models.adapter import CallSpec
from tutti.backend.models.families.hunyuan_video import HunyuanVideo, HunyuanVideoGeometry
from tutti.backend.models.family import TransformerAdapter
from tutti.backend.models.registry import load_model
from tutti.backend.models.tiny import write_tiny

from tests.support.calls import DrawnCall, draw
from tests.support.meshes import single_rank_mesh
from tests.support.parity import FP32_TOLERANCE, relative_error

FAMILY = HunyuanVideo()
TINY = HunyuanVideoGeometry(
    hidden=128, depth=1, depth_single=1, in_channels=16, out_channels=16, context_dim=48, pooled_dim=24, guidance=True
)
GOOD = CallSpec(x_shape=(2, 16, 3, 8, 6), conditioning={"context": (2, 13, 48), "pooled": (2, 24), "guidance": (2,)})


def load(path: Path) -> TransformerAdapter:
    model = load_model(path, dtype=torch.float32, device=torch.device("cpu"), progress=lambda _: None)
    assert model.family == "hunyuan_video"
    model.bind(single_rank_mesh())
    assert isinstance(model.adapter, TransformerAdapter)
    return model.adapter


def velocity(path: Path, call: DrawnCall | None = None) -> Tensor:
    call = call or draw((1, 16, 2, 4, 6), {"context": (1, 5, 48), "pooled": (1, 24)}, numbers={"guidance": 6.0})
    return load(path).velocity(call.x, call.timestep, call.conditioning, call.options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny(path, FAMILY, TINY)
    return path


@pytest.fixture(scope="module")
def adapter(tiny: Path) -> TransformerAdapter:
    return load(tiny)


@pytest.mark.parametrize(
    "written",
    [
        {"naming": "diffusers"},
        {"naming": "diffusers", "prefix": "transformer."},
        {"respell": True},
        {"respell": True, "prefix": "model.diffusion_model."},
        {"prefix": "model.model."},
    ],
    ids=["diffusers", "diffusers, prefix", "Tencent's", "Tencent's, prefix", "saved by ComfyUI"],
)
def test_every_naming_gives_the_same_network(written: Mapping[str, Any], tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_tiny(other, FAMILY, TINY, **written)
    assert set(load_file(other)) != set(load_file(tiny))
    assert relative_error(velocity(other), velocity(tiny)) <= FP32_TOLERANCE


def test_the_names_of_the_authors_are_theirs(tmp_path: Path) -> None:
    path = tmp_path / "tencent.safetensors"
    write_tiny(path, FAMILY, TINY, respell=True)
    assert {
        "double_blocks.0.img_attn_qkv.weight", "double_blocks.0.txt_attn_q_norm.weight", "double_blocks.0.img_attn_proj.bias",
        "double_blocks.0.img_mod.linear.weight", "double_blocks.0.txt_mlp.fc1.bias", "single_blocks.0.modulation.linear.bias",
        "single_blocks.0.k_norm.weight", "single_blocks.0.linear1.weight", "time_in.mlp.0.weight", "guidance_in.mlp.2.bias",
        "vector_in.in_layer.weight", "txt_in.t_embedder.mlp.0.weight", "txt_in.c_embedder.linear_1.weight",
        "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight", "txt_in.individual_token_refiner.blocks.0.mlp.fc2.bias",
        "final_layer.linear.weight",
    } <= set(load_file(path))  # fmt: skip


def test_norms_may_be_named_scale(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({name.replace("_norm.weight", "_norm.scale"): t for name, t in load_file(tiny).items()}, other)
    assert relative_error(velocity(other), velocity(tiny)) <= FP32_TOLERANCE


def test_the_comparison_of_networks_notices_another_seed(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_tiny(other, FAMILY, TINY, seed=1)
    assert relative_error(velocity(other), velocity(tiny)) > 100 * FP32_TOLERANCE


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_the_geometry_is_read_off_the_shapes(naming: str, tmp_path: Path) -> None:
    geometry = HunyuanVideoGeometry(
        hidden=256,
        depth=3,
        depth_single=2,
        in_channels=33,
        out_channels=16,
        context_dim=40,
        pooled_dim=20,
        guidance=False,
    )
    path = tmp_path / "tiny.safetensors"
    write_tiny(path, FAMILY, geometry, naming=naming)  # type: ignore[arg-type]
    found = load(path)
    assert (found.geometry, FAMILY.num_heads(found.geometry)) == (geometry, 2)


@pytest.mark.parametrize(
    ("naming", "extra"),
    [
        ("original", "byt5_in.fc1.weight"),
        ("original", "vision_in.proj.0.weight"),
        ("original", "cond_type_embedding.weight"),
        ("original", "time_r_in.in_layer.weight"),
        ("original", "camera_net.final_proj.weight"),
        ("diffusers", "image_embedder.linear_1.weight"),
        ("diffusers", "clean_x_embedder.proj.weight"),
        ("diffusers", "image_projection.up.weight"),
    ],
)
def test_a_relative_is_refused(naming: str, extra: str, tmp_path: Path) -> None:
    path = tmp_path / "relative.safetensors"
    write_tiny(path, FAMILY, TINY, naming=naming)  # type: ignore[arg-type]
    save_file({**load_file(path), extra: torch.zeros(2, 2)}, path.with_name("changed.safetensors"))
    with pytest.raises(UnsupportedFamily, match="of none of them"):
        load(path.with_name("changed.safetensors"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"img_in.proj.weight": (128, 16, 1, 1, 1)}, r"patches of \(1, 1, 1\)"),
        ({"img_in.proj.weight": (130, 16, 1, 2, 2)}, "this one is 130 wide"),
        ({"img_in.proj.weight": (128, 64)}, "not a tensor of 5 dimensions"),
        ({"txt_in.individual_token_refiner.blocks.2.norm1.weight": (128,)}, "not part of the network"),
    ],
)
def test_other_shapes_are_refused(changes: dict[str, tuple[int, ...]], says: str, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "changed.safetensors"
    save_file({**load_file(tiny), **{name: torch.zeros(shape) for name, shape in changes.items()}}, path)
    with pytest.raises(BadCheckpoint, match=says):
        load(path)


def with_conditioning(**changes: Any) -> CallSpec:
    merged = {**GOOD.conditioning, **changes}
    return replace(GOOD, conditioning={name: shape for name, shape in merged.items() if shape is not None})


@pytest.mark.parametrize(
    "request_",
    [
        GOOD,
        with_conditioning(guidance=None),
        with_conditioning(pooled=(2, 768)),
        with_conditioning(attention_mask=(2, 13), guiding_frame_index=(2,)),
        with_conditioning(ref_latent=(2, 16, 1, 5, 7)),
    ],
)
def test_a_call_that_comfyui_would_run_is_accepted(request_: CallSpec, adapter: TransformerAdapter) -> None:
    adapter.check(request_)


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (replace(GOOD, x_shape=(2, 16, 8, 6)), WrongFamily, "Use a video latent of HunyuanVideo"),
        (replace(GOOD, x_shape=(2, 33, 3, 8, 6)), WrongFamily, "got 33 channels, this checkpoint takes 16"),
        (replace(GOOD, x_shape=(2, 16, 3, 7, 6)), BadRequest, "Use a latent whose height and width are multiples of 2"),
        (replace(GOOD, timestep_shape=(2, 3)), BadRequest, "Give one timestep per picture"),
        (with_conditioning(context=None), BadRequest, "Connect a text conditioning"),
        (with_conditioning(context=(2, 13, 64)), WrongFamily, "Use the text encoders that belong to HunyuanVideo"),
        (with_conditioning(pooled=None), BadRequest, r"Connect a text conditioning: .* needs pooled as \[batch, 24\]"),
        (with_conditioning(pooled=(2, 23)), WrongFamily, "Use the text encoders that belong to HunyuanVideo"),
        (
            with_conditioning(attention_mask=(2, 12)),
            BadRequest,
            "Give attention_mask for every token of context: got 12",
        ),
        (with_conditioning(attention_mask=(2, 1, 13)), WrongFamily, "Use the text encoders"),
        (with_conditioning(guiding_frame_index=(1,)), BadRequest, "Give guiding_frame_index for every picture"),
        (
            with_conditioning(ref_latent=(2, 4, 1, 8, 6)),
            WrongFamily,
            r"Encode the reference image .*\[batch, 16, frames",
        ),
        (with_conditioning(ref_latent=(2, 16, 8, 6)), WrongFamily, "Encode the reference image"),
        (with_conditioning(clip_fea=(2, 257, 1280)), UnsupportedInput, "Disconnect what gives clip_fea"),
        (with_conditioning(txt_byt5=(2, 5, 1472)), UnsupportedInput, "Disconnect what gives txt_byt5"),
        (replace(GOOD, options={"disable_time_r": True}), UnsupportedInput, "Disconnect what sets disable_time_r"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(
    request_: CallSpec, error: type[TuttiError], says: str, adapter: TransformerAdapter
) -> None:
    with pytest.raises(error, match=says):
        adapter.check(request_)


def masked(mask: list[list[int]], dtype: torch.dtype = torch.int64) -> DrawnCall:
    batch, tokens = len(mask), len(mask[0])
    call = draw((batch, 16, 1, 4, 6), {"context": (batch, tokens, 48), "pooled": (batch, 24)})
    return replace(call, conditioning={**call.conditioning, "attention_mask": torch.tensor(mask, dtype=dtype)})


def test_videos_of_different_masks_come_out_as_they_would_alone(tiny: Path) -> None:
    """Stock ComfyUI cannot batch them: a batch of one is what the parity rows compare with it."""
    call = masked([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    together = velocity(tiny, call)
    conditioning = call.conditioning
    for row in range(3):
        own = {name: tensor[row : row + 1] for name, tensor in conditioning.items()}
        alone = velocity(
            tiny, replace(call, x=call.x[row : row + 1], timestep=call.timestep[row : row + 1], conditioning=own)
        )
        assert relative_error(together[row : row + 1], alone) <= FP32_TOLERANCE
    unmasked = {name: tensor for name, tensor in conditioning.items() if name != "attention_mask"}
    assert relative_error(velocity(tiny, replace(call, conditioning=unmasked)), together) > 100 * FP32_TOLERANCE


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (masked([[1, 1, 0]], torch.float32), UnsupportedInput),
        (masked([[1, 1, 0]], torch.bool), UnsupportedInput),
        (masked([[2, 1, 0]]), UnsupportedInput),
        (masked([[1, 0, 0], [0, 0, 0]]), BadRequest),
    ],
    ids=["added to the scores", "cast to numbers", "neither 0 nor 1", "no text at all"],
)
def test_a_mask_that_excludes_no_tokens_or_all_is_refused(
    call: DrawnCall, error: type[TuttiError], adapter: TransformerAdapter
) -> None:
    with pytest.raises(error, match="attention_mask"):
        adapter.check_values(call.conditioning)
