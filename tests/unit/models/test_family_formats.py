"""Every family from packed files: its fused matrices, its names and its swapped halves, as the numbers they stand for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tutti.backend.models.registry import load_model
from tutti.backend.models.tiny import write_tiny

from tests.support import quantised
from tests.support.calls import DrawnCall
from tests.support.families import ROWS
from tests.support.meshes import single_rank_mesh
from tests.support.parity import relative_error

EXACT = 1e-6
"""Both sides compute with the same float32 numbers."""


def velocity(path: Path, call: DrawnCall) -> Tensor:
    model = load_model(path, dtype=torch.float32, device=torch.device("cpu"), progress=lambda _: None)
    model.bind(single_rank_mesh())
    return model.adapter.velocity(call.x, call.timestep, call.conditioning, call.options)


@pytest.mark.parametrize("stored", ["nvfp4", "Q8_0"])
@pytest.mark.parametrize("name", ROWS)
def test_a_packed_file_is_read_as_its_numbers(name: str, stored: str, tmp_path: Path) -> None:
    family, (row, *_) = ROWS[name]
    tiny = tmp_path / "tiny.safetensors"
    write_tiny(tiny, family, row.geometry, metadata=row.metadata)
    if stored == "nvfp4":
        packed = tmp_path / "packed.safetensors"
        plain = quantised.rewritten(tiny, partial(quantised.comfy_tensors, format="nvfp4"), out=packed)
    else:
        packed, plain = tmp_path / "packed.gguf", tmp_path / "plain.safetensors"
        values = quantised.write_gguf(packed, load_file(tiny), stored)
        save_file({key: tensor.contiguous() for key, tensor in values.items()}, plain)
    call = next(iter(row.calls.values()))
    ours = velocity(packed, call)
    assert relative_error(ours, velocity(plain, call)) <= EXACT
    assert relative_error(ours, velocity(tiny, call)) > 100 * EXACT, "the control: packing loses something"
