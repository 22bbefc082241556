"""Every format of LoRA gives the velocity of the model that stock ComfyUI has patched itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tutti.backend.models.checkpoint import open_checkpoint
from tutti.backend.models.families.flux import Flux, FluxGeometry
from tutti.backend.models.lora.read import read_lora, targets_of
from tutti.backend.models.lora.variant import OriginalWeights, Variant, merged_weights
from tutti.backend.models.registry import load_model

from tests.support import loras
from tests.support.checkpoints import write_tiny_flux
from tests.support.flux_calls import FluxCall
from tests.support.meshes import single_rank_mesh
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.stock import StockFile, needs_comfyui, stock_runs

pytestmark = [needs_comfyui, pytest.mark.comfy, pytest.mark.timeout(240)]

GEOMETRY = FluxGeometry(
    hidden=256, depth=1, depth_single=2, in_channels=16, out_channels=16, context_dim=64, pooled_dim=32, guidance=True
)
CALL = FluxCall(height=8, width=6, tokens=5)
FORMATS = loras.formats(GEOMETRY)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    path = folder / "tiny.safetensors"
    assert write_tiny_flux(path, hidden=256, depth=1, depth_single=2) == GEOMETRY
    for name, tensors in FORMATS.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    return path


def patched_velocity(tiny: Path, files: Sequence[tuple[Path, float]], merged: Path) -> tuple[Tensor, Tensor]:
    """With the LoRAs, and after they were taken out again."""
    flux = Flux()
    model = load_model(tiny, dtype=torch.float32, device=torch.device("cpu"), progress=lambda _: None)
    model.bind(single_rank_mesh())
    checkpoint = open_checkpoint(tiny)
    targets = targets_of(flux, GEOMETRY)
    patches = [patch for file, s in files for patch in read_lora(load_file(file), targets, strength=s)]
    x, timestep, conditioning = CALL.tensors()
    variant = Variant(model.adapter.network, flux.key_map(GEOMETRY).source)  # type: ignore[attr-defined]
    original = OriginalWeights(flux, GEOMETRY, checkpoint)
    variant.apply(merged_weights(original, patches, torch.float32, merged).tensors, torch.device("cpu"))
    changed = model.adapter.velocity(x, timestep, conditioning, {})
    variant.remove()
    return changed, model.adapter.velocity(x, timestep, conditioning, {})


CASES: dict[str, list[tuple[str, float]]] = {
    **{name: [(name, 1.0)] for name in FORMATS},
    "negative strength": [("kohya", -0.7)],
    "two at once": [("kohya", 0.8), ("diffusers", -0.5)],
    "DoRA, half": [("DoRA", 0.5)],
}


def files_of(case: str, tiny: Path) -> list[tuple[Path, float]]:
    return [(tiny.with_name(f"{name}.safetensors"), strength) for name, strength in CASES[case]]


@pytest.fixture(scope="module")
def stock(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Every case, and the model without any LoRA as ``plain``."""
    files = [
        StockFile(path=tiny, calls={case: CALL.drawn()}, loras=files_of(case, tiny) if case in CASES else ())
        for case in (*CASES, "plain")
    ]
    return stock_runs(files, tmp_path_factory.mktemp("stock") / "stock", family="flux")


@pytest.mark.parametrize("case", CASES)
def test_a_lora_gives_what_comfyuis_own_loader_gives(
    case: str, tiny: Path, stock: dict[str, Tensor], tmp_path: Path
) -> None:
    ours, without = patched_velocity(tiny, files_of(case, tiny), tmp_path / "merged.safetensors")
    assert relative_error(ours, stock[case]) <= FP32_TOLERANCE
    assert relative_error(ours, stock["plain"]) > 1000 * FP32_TOLERANCE, "the control: the LoRA changes the picture"
    assert relative_error(without, stock["plain"]) <= FP32_TOLERANCE, "taken out, nothing of it is left"
