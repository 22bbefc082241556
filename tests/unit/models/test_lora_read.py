"""Names in LoRA files, and what becomes of a layer that a file changes in more than one way: as in ComfyUI's own loader, or named in an error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from tutti.backend.errors import BadCheckpoint
from tutti.backend.models.families.flux import Flux, FluxGeometry
from tutti.backend.models.families.flux2 import Flux2
from tutti.backend.models.lora.read import Target, read_lora, targets_of

from tests.support.families import ROWS

GEOMETRY = FluxGeometry(
    hidden=256, depth=1, depth_single=1, in_channels=16, out_channels=16, context_dim=64, pooled_dim=32, guidance=True
)


LAYER = "double_blocks.0.img_attn.qkv"
KINDS = {
    "lora": {"lora_up.weight": torch.ones(768, 2), "lora_down.weight": torch.ones(2, 256)},
    "loha": {f"hada_{part}": torch.ones(2, 2) for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "lokr": {"lokr_w1": torch.ones(3, 1), "lokr_w2": torch.ones(256, 256)},
    "diff": {"diff": torch.ones(768, 256)},
    "set": {"set_weight": torch.ones(768, 256)},
}
"""In the order in which ComfyUI's loader looks for them: what it finds later replaces what it found."""


def file(*kinds: str, prefix: str = "diffusion_model.", layer: str = LAYER) -> dict[str, Tensor]:
    return {f"{prefix}{layer}.{ending}": tensor for kind in kinds for ending, tensor in KINDS[kind].items()}


def targets(name: str) -> dict[str, Target]:
    family, (row, *_) = ROWS[name]
    return targets_of(family, row.geometry)


@pytest.mark.parametrize(
    ("published", "layer"),
    [
        ("double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn.qkv"),
        ("double_blocks.1.txt_attn_proj", "double_blocks.1.txt_attn.proj"),
        ("double_blocks.0.img_mlp.fc1", "double_blocks.0.img_mlp.0"),
        ("double_blocks.0.txt_mlp.fc2", "double_blocks.0.txt_mlp.2"),
        ("double_blocks.0.img_mod.linear", "double_blocks.0.img_mod.lin"),
        ("double_blocks.0.img_attn_q_norm", "double_blocks.0.img_attn.norm.query_norm"),
        ("single_blocks.1.modulation.linear", "single_blocks.1.modulation.lin"),
        ("single_blocks.0.k_norm", "single_blocks.0.norm.key_norm"),
        ("single_blocks.0.linear1", "single_blocks.0.linear1"),
        ("txt_in.individual_token_refiner.blocks.0.self_attn_qkv", "txt_in.individual_token_refiner.blocks.0.self_attn.qkv"),
        ("txt_in.individual_token_refiner.blocks.0.mlp.fc1", "txt_in.individual_token_refiner.blocks.0.mlp.0"),
        ("txt_in.t_embedder.mlp.0", "txt_in.t_embedder.in_layer"),
        ("txt_in.c_embedder.linear_2", "txt_in.c_embedder.out_layer"),
        ("guidance_in.mlp.2", "guidance_in.out_layer"),
        ("final_layer.linear", "final_layer.linear"),
    ],
)  # fmt: skip
def test_layers_of_hunyuan_video_are_known_by_tencents_names(published: str, layer: str) -> None:
    known = targets("hunyuan_video")
    flat = published.replace(".", "_")
    for name in (f"diffusion_model.{published}", f"transformer.{published}", f"lora_unet_{flat}"):
        assert known[name] == Target(layer=layer), name
    for name in (f"diffusion_model.{layer}", f"lora_unet_{layer.replace('.', '_')}"):
        assert known[name] == Target(layer=layer), name


def test_wan_fun_writes_two_underscores() -> None:
    known = targets("wan")
    assert known["lora_unet__blocks_0_cross_attn_k"] == Target(layer="blocks.0.cross_attn.k")
    assert known["lora_unet__blocks_0_cross_attn_k"] == known["lora_unet_blocks_0_cross_attn_k"]


def test_the_attention_half_of_fluxs_fused_layer_has_a_name_of_its_own() -> None:
    layer = "single_blocks.0.linear1"
    known = targets_of(Flux(), GEOMETRY)
    assert known[f"diffusion_model.{layer}_qkv"] == Target(layer=layer, rows=(0, 768))
    assert known[f"diffusion_model.{layer}"] == Target(layer=layer)
    family, (row, *_) = ROWS["flux2"]
    assert isinstance(family, Flux2)
    rows = (0, 3 * row.geometry.hidden)
    assert targets("flux2")[f"diffusion_model.{layer}_qkv"] == Target(layer=layer, rows=rows)


@pytest.mark.parametrize("name", ROWS)
def test_names_for_more_files_take_none_from_the_others(name: str) -> None:
    """Every original name still leads to its own layer, and every one of diffusers' to one part of a layer."""
    family, (row, *_) = ROWS[name]
    known = targets(name)
    assert {target.layer for target in known.values()} == {
        target.layer for key, target in known.items() if key == f"diffusion_model.{target.layer}"
    }
    for parameter in family.empty_network(row.geometry).state_dict():
        if parameter.endswith(".weight"):
            ours = parameter.removesuffix(".weight")
            source = family.key_map(row.geometry).source(parameter) if family.original_marks else None
            layer = ours if source is None else source.name.removesuffix(".weight")
            part = (
                Target(layer=layer)
                if source is None
                else Target(layer=layer, rows=source.rows, swap_halves=source.swap_halves)
            )
            assert known[f"transformer.{ours}"] == part


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_of_two_kinds_for_one_layer_the_one_that_comfyui_keeps_counts(first: str, second: str) -> None:
    kept = max(first, second, key=list(KINDS).index)
    (patch,) = read_lora(file(first, second), targets_of(Flux(), GEOMETRY), strength=1.0)
    assert patch.adapter.kind == kept


def test_a_bias_is_changed_beside_whatever_changes_the_weight() -> None:
    tensors = file("lora", "diff") | {f"diffusion_model.{LAYER}.diff_b": torch.ones(768)}
    bias, weight = read_lora(tensors, targets_of(Flux(), GEOMETRY), strength=0.5)
    assert (bias.weight, bias.adapter.kind, bias.strength) == (f"{LAYER}.bias", "diff", 0.5)
    assert (weight.weight, weight.adapter.kind, weight.strength) == (f"{LAYER}.weight", "diff", 0.5)


def test_a_magnitude_is_for_matrices_and_not_for_a_difference() -> None:
    magnitude = {f"diffusion_model.{LAYER}.dora_scale": torch.ones(768, 1)}
    known = targets_of(Flux(), GEOMETRY)
    (diff,) = read_lora(file("lora", "diff") | magnitude, known, strength=1.0)
    (dora,) = read_lora(file("lora") | magnitude, known, strength=1.0)
    assert "dora_scale" not in diff.adapter.tensors
    assert "dora_scale" in dora.adapter.tensors


def test_one_layer_under_two_names_is_refused() -> None:
    twice = file("lora") | file("diff", prefix="lora_unet_", layer=LAYER.replace(".", "_"))
    with pytest.raises(BadCheckpoint, match=f"says twice what {LAYER}.weight is changed by"):
        read_lora(twice, targets_of(Flux(), GEOMETRY), strength=1.0)
