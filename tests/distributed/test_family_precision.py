"""In bf16 and fp16 a family is as near to stock ComfyUI in fp32 as stock ComfyUI in that dtype is."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from tutti.backend.models.registry import load_model
from tutti.backend.models.tiny import write_tiny

from tests.support.families import ROWS
from tests.support.meshes import single_rank_mesh
from tests.support.stock import StockFile, needs_comfyui, stock_runs

pytestmark = [needs_comfyui, pytest.mark.comfy, pytest.mark.timeout(300)]

CALLS = 3
LIMIT = 1.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_half_precision_is_as_near_to_stock_fp32_as_stocks_own(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    family, (row, *_) = ROWS[name]
    checkpoint = tmp_path / "tiny.safetensors"
    write_tiny(checkpoint, family, row.geometry, metadata=row.metadata)
    file = StockFile(path=checkpoint, calls=dict(islice(row.calls.items(), CALLS)), unet_config=row.unet_config)
    exact, rounded = (
        stock_runs([file], tmp_path / wanted, family=family.name, dtype=wanted)
        for wanted in ("float32", str(dtype).removeprefix("torch."))
    )
    model = load_model(checkpoint, dtype=dtype, device=torch.device("cpu"), progress=lambda _: None)
    model.bind(single_rank_mesh())
    velocities = {
        case: model.adapter.velocity(call.x, call.timestep, call.conditioning, call.options)
        for case, call in file.calls.items()
    }
    ours, theirs = distance(velocities, exact), distance(rounded, exact)
    assert theirs > 0, "the control: it rounds"
    assert ours <= LIMIT * theirs


def distance(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Over all values of all calls: a call of one token alone tells little about rounding."""
    return sum(float((found[case] - exact[case]).square().sum()) for case in exact) ** 0.5
