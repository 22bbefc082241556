"""Ranks of one host hold a checkpoint once, whatever they compute in, and what a LoRA changes once more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tutti.backend.models.families.flux import FluxGeometry

from tests.support import loras
from tests.support.checkpoints import write_tiny_flux
from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

RANKS = 4
LIMIT = 1.2
SIZE = {"hidden": 768, "depth": 2, "depth_single": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    geometry: FluxGeometry = write_tiny_flux(folder / "tiny.safetensors", dtype=torch.bfloat16, **SIZE)
    write_tiny_flux(folder / "warm_up.safetensors", hidden=128, depth=1, depth_single=1)
    save_file(loras.formats(geometry)["kohya"], folder / "lora.safetensors")
    return folder


def stages(folder: Path, out: Path, *, dtype: str, shared: bool, ranks_count: int = RANKS) -> dict[str, int]:
    """Bytes that all ranks together took, by stage, without what they had before; and what was said before loading."""
    arguments = {
        "checkpoint": str(folder / "tiny.safetensors"),
        "lora": str(folder / "lora.safetensors"),
        "warm_up": str(folder / "warm_up.safetensors"),
        "dtype": dtype,
        "shared_file": str(out / "shared" / "model.safetensors") if shared else "",
    }
    ranks = run_ranks("tests.distributed.memory_ranks", ranks_count, out / "ranks", arguments, timeout_s=200)
    total = {stage: sum(rank.facts[stage] for rank in ranks) for stage in ("before", "loaded", "with LoRA")}
    taken = {stage: size - total["before"] for stage, size in total.items()}
    return taken | {"estimate": ranks[0].facts["estimate"]}


def test_four_ranks_take_the_file_once_and_what_a_lora_changes_once(folder: Path, tmp_path: Path) -> None:
    file_bytes = (folder / "tiny.safetensors").stat().st_size
    taken = stages(folder, tmp_path, dtype="bfloat16", shared=True)
    changed_bytes = sum(file.stat().st_size for file in (tmp_path / "ranks" / "variants").glob("*.safetensors"))
    assert 0.5 * file_bytes < changed_bytes < file_bytes
    assert taken["loaded"] <= LIMIT * file_bytes
    assert taken["with LoRA"] <= LIMIT * file_bytes + changed_bytes


def test_four_ranks_convert_to_another_dtype_once(folder: Path, tmp_path: Path) -> None:
    converted_bytes = 2 * (folder / "tiny.safetensors").stat().st_size
    shared = stages(folder, tmp_path / "shared", dtype="float32", shared=True)
    alone = stages(folder, tmp_path / "alone", dtype="float32", shared=False)
    assert shared["loaded"] <= LIMIT * converted_bytes
    assert alone["loaded"] > 0.9 * RANKS * converted_bytes, "the control: each rank with its own"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_said_before_loading_is_what_it_takes(dtype: str, folder: Path, tmp_path: Path) -> None:
    taken = stages(folder, tmp_path, dtype=dtype, shared=dtype != "bfloat16", ranks_count=1)
    assert taken["loaded"] == pytest.approx(taken["estimate"], rel=0.10)
