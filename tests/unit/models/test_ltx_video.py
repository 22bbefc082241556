"""LTX-Video's files and inputs: both namings, what the metadata tells, what is refused and with which words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tutti.backend.errors import BadCheckpoint, BadRequest, TuttiError, UnsupportedFamily, UnsupportedInput, WrongFamily
from tutti.backend.models.adapter import Adapter, CallSpec
from tutti.backend.models.checkpoint import PREFIXES, open_checkpoint
from tutti.backend.models.families.ltx_video import LtxVideo, LtxVideoGeometry, grid_positions
from tutti.backend.models.family import TransformerAdapter
from tutti.backend.models.registry import find_family, load_model
from tutti.backend.models.tiny import Naming, write_tiny

CPU = torch.device("cpu")
TINY = LtxVideoGeometry(hidden=64, depth=2, channels=16, text_dim=24)
GOOD = CallSpec(
    x_shape=(2, 16, 4, 3, 5),
    conditioning={"context": (2, 13, 24), "attention_mask": (2, 13)},
    options={"frame_rate": 25},
)
GUIDED = replace(
    GOOD,
    timestep_shape=(2, 60, 1),
    conditioning={**GOOD.conditioning, "denoise_mask": (2, 16, 4, 3, 5), "keyframe_idxs": (2, 3, 15, 2)},
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_tiny(path, LtxVideo(), TINY)
    return path


@pytest.fixture(scope="module")
def adapter(tiny: Path) -> Adapter:
    return load(tiny)


def load(path: Path) -> TransformerAdapter:
    adapter = load_model(path, dtype=torch.float32, device=CPU, progress=lambda _: None).adapter
    assert isinstance(adapter, TransformerAdapter)
    return adapter


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_both_namings_and_every_prefix_give_the_same_network(
    naming: Naming, prefix: str, adapter: TransformerAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    write_tiny(path, LtxVideo(), TINY, naming=naming, prefix=prefix)
    other = load(path)
    assert other.geometry == TINY
    expected = adapter.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.network.state_dict().items())


@pytest.mark.parametrize(
    "stranger",
    [
        "audio_adaln_single.linear.weight",
        "av_ca_a2v_gate_adaln_single.linear.weight",
        "prompt_adaln_single.linear.weight",
        "transformer_blocks.0.audio_attn1.to_q.weight",
        "transformer_blocks.0.prompt_scale_shift_table",
        "transformer_blocks.0.attn1.to_gate_logits.weight",
    ],
)
def test_ltx_2_is_not_taken_for_it(stranger: str, tiny: Path, tmp_path: Path) -> None:
    assert find_family(open_checkpoint(tiny))[0].name == "ltx_video"
    save_file({**load_file(tiny), stranger: torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedFamily):
        find_family(open_checkpoint(tmp_path / "other.safetensors"))


def with_config(path: Path, config: Mapping[str, Any] | str) -> Path:
    text = config if isinstance(config, str) else json.dumps({"transformer": config})
    write_tiny(path, LtxVideo(), TINY, metadata={"config": text})
    return path


def test_what_no_shape_tells_is_read_from_the_metadata(tmp_path: Path) -> None:
    told = {
        "num_attention_heads": 4,
        "causal_temporal_positioning": True,
        "timestep_scale_multiplier": 900,
        "positional_embedding_max_pos": [10, 512, 256.0],
        "activation_fn": "gelu-approximate",
    }
    geometry = load(with_config(tmp_path / "tiny.safetensors", told)).geometry
    assert geometry == replace(TINY, num_heads=4, causal=True, timestep_scale=900.0, extents=(10.0, 512.0, 256.0))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rope_type": "split"}, "sets rope_type as later models do"),
        ({"cross_attention_adaln": True, "frequencies_precision": "float64"}, "frequencies_precision, cross_attention"),
        ({"num_attention_heads": 3}, "64 wide with 3 heads"),
        ({"num_attention_heads": 64}, "heads of an even width"),
        ({"num_attention_heads": "4"}, "heads of an even width"),
        ({"timestep_scale_multiplier": 0}, "0 for timestep_scale_multiplier"),
        ({"positional_embedding_max_pos": [20, 2048]}, "positional_embedding_max_pos"),
        ({"positional_embedding_max_pos": [20, 2048, None]}, "None for positional_embedding_max_pos"),
        ("[", "the config in its metadata is damaged"),
        ("[1]", "the config in its metadata is damaged"),
        ('{"transformer": 1}', "the config in its metadata is damaged"),
    ],
)
def test_metadata_that_it_cannot_run_with_is_refused(config: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=says):
        load(with_config(tmp_path / "tiny.safetensors", config))


def test_the_first_frame_of_a_causal_video_stands_for_itself() -> None:
    assert grid_positions([3, 1, 1], True, CPU)[0, 0].tolist() == [0, 1, 9]
    assert grid_positions([3, 1, 2], False, CPU)[0].tolist() == [[0, 0, 8, 8, 16, 16], [0] * 6, [0, 32] * 3]


def with_conditioning(base: CallSpec, **changes: Any) -> CallSpec:
    merged = {**base.conditioning, **changes}
    return replace(base, conditioning={name: shape for name, shape in merged.items() if shape is not None})


@pytest.mark.parametrize(
    "request_",
    [
        GOOD,
        GUIDED,
        with_conditioning(GOOD, attention_mask=None),
        with_conditioning(GUIDED, keyframe_idxs=None),
        replace(GOOD, options={}),
        replace(GOOD, options={"frame_rate": 23.976}),
    ],
)
def test_a_call_that_comfyui_would_run_is_accepted(request_: CallSpec, adapter: Adapter) -> None:
    adapter.check(request_)


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (replace(GOOD, x_shape=(2, 16, 3, 5)), WrongFamily, "Use a video latent of LTX-Video"),
        (replace(GOOD, x_shape=(2, 128, 4, 3, 5)), WrongFamily, "got 128 channels, this checkpoint takes 16"),
        (replace(GOOD, timestep_shape=(2, 4)), BadRequest, "one timestep per picture"),
        (replace(GOOD, timestep_shape=(2, 59, 1)), BadRequest, "one timestep per picture"),
        (with_conditioning(GOOD, context=None), BadRequest, "Connect a text conditioning"),
        (with_conditioning(GOOD, context=(2, 13, 32)), WrongFamily, "Use the text encoder that belongs to LTX-Video"),
        (with_conditioning(GOOD, attention_mask=(2, 12)), BadRequest, "12 values of attention_mask for 13 tokens"),
        (with_conditioning(GOOD, attention_mask=(2, 1, 13)), WrongFamily, "Use the text encoder"),
        (with_conditioning(GOOD, ref_audio=(2, 3)), UnsupportedInput, "Disconnect what gives ref_audio"),
        (replace(GOOD, options={"guidance": 3.0}), UnsupportedInput, "Disconnect what sets guidance"),
        (replace(GOOD, options={"frame_rate": 0}), BadRequest, "Set the frame rate to a number above 0: got '0'"),
        (replace(GOOD, options={"frame_rate": "25"}), BadRequest, "Set the frame rate"),
        (replace(GOOD, options={"frame_rate": True}), BadRequest, "Set the frame rate"),
        (replace(GOOD, options={"frame_rate": float("nan")}), BadRequest, "Set the frame rate"),
        (with_conditioning(GUIDED, denoise_mask=None), BadRequest, "Connect the latent that the guides were added to"),
        (with_conditioning(GUIDED, denoise_mask=(2, 1, 4, 3, 4)), BadRequest, r"denoise_mask of \[batch, channels, 4,"),
        (with_conditioning(GUIDED, keyframe_idxs=(2, 3, 61, 2)), BadRequest, "at most 60"),
        (with_conditioning(GUIDED, keyframe_idxs=(2, 2, 15, 2)), BadRequest, "guides need keyframe_idxs"),
        (with_conditioning(GUIDED, keyframe_idxs=(2, 3, 15)), WrongFamily, "Connect the latent that the guides"),
        (replace(GUIDED, timestep_shape=(2,)), BadRequest, "a timestep per token"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(
    request_: CallSpec, error: type[TuttiError], says: str, adapter: Adapter
) -> None:
    with pytest.raises(error, match=says):
        adapter.check(request_)
