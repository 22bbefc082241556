"""In bf16 a family is as near to stock ComfyUI in fp32 as stock ComfyUI in bf16 is."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from tutti.backend.models.registry import load_model
from tutti.backend.models.tiny import write_tiny

from tests.support.families import ROWS
from tests.support.meshes import single_rank_mesh
from tests.support.stock import StockFile, needs_comfyui, stock_runs

pytestmark = [needs_comfyui, pytest.mark.comfy, pytest.mark.timeout(300)]

CALLS = 4
LIMIT = 1.1


@pytest.mark.parametrize("name", ROWS)
def test_bf16_is_as_near_to_stock_fp32_as_stock_bf16(name: str, tmp_path: Path) -> None:
    family, (row, *_) = ROWS[name]
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny(checkpoint, family, row.geometry, metadata=row.metadata)
    file = StockFile(path=checkpoint, calls=dict(islice(row.calls.items(), CALLS)), unet_config=row.unet_config)
    exact, rounded = (
        stock_runs([file], tmp_path / dtype, family=family.name, dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    model = load_model(checkpoint, dtype=torch.bfloat16, device=torch.device("cpu"), progress=lambda _: None)
    model.bind(single_rank_mesh())
    ours, theirs = 0.0, 0.0
    for case, call in file.calls.items():
        velocity = model.adapter.velocity(call.x, call.timestep, call.conditioning, call.options)
        ours += float((velocity - exact[case]).norm() / exact[case].norm())
        theirs += float((rounded[case] - exact[case]).norm() / exact[case].norm())
    assert theirs > 0, "the control: bf16 rounds"
    assert ours <= LIMIT * theirs
