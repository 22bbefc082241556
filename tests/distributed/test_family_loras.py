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
    checkpoint, lora = tmp_path / "tiny.safetensors", tmp_path / "lora.safetensors"
    write_tiny(checkpoint, family, row.geometry, respell=published, metadata=row.metadata)
    layers = loras.shapes(row.geometry, original=True, family=family)
    tensors = loras.lora(layers, "diffusion_model.{}".format, "lora_up.weight", "lora_down.weight", alpha=2.0)
    tensors |= loras.norm_diffs(row.geometry, family)
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
