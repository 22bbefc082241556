"""A LoRA for every family, in the names that ComfyUI gives its layers: the velocity is that of the model that stock ComfyUI has patched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from tutti.backend.models.families.flux import Flux, FluxGeometry
from tutti.backend.models.family import Family
from tutti.backend.models.lora.variants import NONE, Lora
from tutti.backend.models.registry import load_model
from tutti.backend.models.tiny import write_tiny

from tests.support import loras
from tests.support.families import ROWS
from tests.support.family_parity import FamilyRow
from tests.support.flux_calls import FluxCall
from tests.support.meshes import single_rank_mesh
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.stock import StockFile, needs_comfyui, stock_runs

pytestmark = [needs_comfyui, pytest.mark.comfy, pytest.mark.timeout(300)]

STRENGTH = -0.7
FLUX: Final = FamilyRow(
    name="text to image",
    geometry=FluxGeometry(
        hidden=256, depth=1, depth_single=1, in_channels=16, out_channels=16, context_dim=64, pooled_dim=32, guidance=True
    ),
    calls={"even": FluxCall().drawn()},
)  # fmt: skip
FAMILIES: Final[Mapping[str, tuple[Family[Any], FamilyRow]]] = {
    "flux": (Flux(), FLUX),
    **{name: (family, row) for name, (family, (row, *_)) in ROWS.items()},
}
CASES: Final = [
    *((name, False) for name in FAMILIES),
    *((name, True) for name, (family, _) in FAMILIES.items() if family.spellings),
]
"""Family, and whether the checkpoint has the published names where ComfyUI has others."""


@pytest.mark.parametrize(
    ("name", "published"), CASES, ids=[f"{name}, published names" if published else name for name, published in CASES]
)
def test_a_lora_gives_what_comfyuis_own_loader_gives(name: str, published: bool, tmp_path: Path) -> None:
    family, row = FAMILIES[name]
    layers = loras.shapes(row.geometry, original=True, family=family)
    tensors = loras.lora(layers, "diffusion_model.{}".format, "lora_up.weight", "lora_down.weight", alpha=2.0)
    check(name, tensors | loras.norm_diffs(row.geometry, family), tmp_path, published=published)


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
def test_a_lora_in_tencents_names_gives_what_comfyuis_own_loader_gives(prefix: str, tmp_path: Path) -> None:
    family, row = FAMILIES["hunyuan_video"]
    # ComfyUI's loader knows these layers by Tencent's names, and leaves the embedders out.
    layers = {
        _tencents(layer): shape
        for layer, shape in loras.shapes(row.geometry, original=True, family=family).items()
        if layer.startswith(("double_blocks.", "single_blocks."))
    }
    assert "double_blocks.0.img_mlp.fc1" in layers
    tensors = loras.lora(layers, (prefix + "{}").format, "lora_B.weight", "lora_A.weight", alpha=None)
    check("hunyuan_video", tensors, tmp_path)


def test_a_layer_changed_in_two_ways_and_part_of_another_are_what_they_are_in_comfyui(tmp_path: Path) -> None:
    width = FLUX.geometry.hidden
    both = {"double_blocks.0.img_attn.qkv": (3 * width, width), "single_blocks.0.linear1_qkv": (3 * width, width)}
    tensors = loras.lora(both, "diffusion_model.{}".format, "lora_up.weight", "lora_down.weight", alpha=2.0)
    generator = torch.Generator().manual_seed(6)
    for ending, shape in {"diff": (3 * width, width), "diff_b": (3 * width,), "dora_scale": (3 * width, 1)}.items():
        tensors[f"diffusion_model.double_blocks.0.img_attn.qkv.{ending}"] = 0.05 * torch.randn(
            shape, generator=generator
        )
    check("flux", tensors, tmp_path)


def _tencents(layer: str) -> str:
    for ours, theirs in {
        "_attn.qkv": "_attn_qkv", "_attn.proj": "_attn_proj", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2", ".lin": ".linear",
    }.items():  # fmt: skip
        if layer.endswith(ours):
            return layer.removesuffix(ours) + theirs
    return layer


def check(name: str, tensors: Mapping[str, Tensor], tmp_path: Path, *, published: bool = False) -> None:
    """The LoRA of these tensors changes a family's velocity as it does in stock ComfyUI, and leaves nothing behind.

    ``published``: the checkpoint has the published names.
    """
    family, row = FAMILIES[name]
    checkpoint, lora = tmp_path / "tiny.safetensors", tmp_path / "lora.safetensors"
    write_tiny(checkpoint, family, row.geometry, respell=published, metadata=row.metadata)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, lora)
    call = next(iter(row.calls.values()))
    files = [
        StockFile(path=checkpoint, calls={case: call}, loras=used, unet_config=row.unet_config)
        for case, used in (("plain", ()), ("patched", ((lora, STRENGTH),)))
    ]
    stock = stock_runs(files, tmp_path / "stock", family=family.name)

    model = load_model(checkpoint, dtype=torch.float32, device=torch.device("cpu"), progress=lambda _: None)
    model.bind(single_rank_mesh())
    assert model.variants is not None
    key = model.variants.prepare(
        [Lora(path=str(lora), fingerprint="1", strength=STRENGTH)], identity="x", folder=tmp_path / "variants"
    )

    def velocity(variant: str) -> Tensor:
        assert model.variants is not None
        model.variants.switch(variant)
        return model.adapter.velocity(call.x, call.timestep, call.conditioning, call.options)

    assert relative_error(velocity(key), stock["patched"]) <= FP32_TOLERANCE
    assert relative_error(stock["patched"], stock["plain"]) > 100 * FP32_TOLERANCE, (
        "the control: the LoRA changes something"
    )
    assert relative_error(velocity(NONE), stock["plain"]) <= FP32_TOLERANCE, "taken out, nothing of it is left"
