"""Stock ComfyUI's own FLUX network as a reference: a separate process, from the environment of ``install.py comfyui``."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.flux_calls import FluxCall

REPOSITORY = Path(__file__).resolve().parents[2]
COMFYUI = REPOSITORY / ".comfyui" / "0.30.0"

needs_comfyui = pytest.mark.skipif(
    not (COMFYUI / "venv" / "bin" / "python").exists(), reason="needs a ComfyUI: python3 install.py comfyui"
)


def stock_velocities(
    checkpoint: Path, calls: Mapping[str, FluxCall], folder: Path, *, dtype: str = "float32", timeout_s: float = 100
) -> dict[str, Tensor]:
    """The velocity of every call from stock ComfyUI's network, float32."""
    folder.mkdir(parents=True)
    inputs: dict[str, Tensor] = {}
    for name, call in calls.items():
        x, timestep, conditioning = call.tensors()
        inputs |= {f"{name}/{key}": tensor for key, tensor in {"x": x, "timestep": timestep, **conditioning}.items()}
    save_file(inputs, folder / "inputs.safetensors")
    cases = [{"name": name, "references": len(call.references), "method": call.method} for name, call in calls.items()]
    (folder / "job.json").write_text(json.dumps({"checkpoint": str(checkpoint), "dtype": dtype, "cases": cases}))
    script = REPOSITORY / "benchmarks" / "stock_flux.py"
    command = [COMFYUI / "venv/bin/python", script, COMFYUI / "ComfyUI", folder, "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONWARNINGS", None)  # ComfyUI's own dependencies warn
    done = subprocess.run(
        command,
        input="".join(f"{name}\n" for name in calls),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        cwd=folder,
    )
    if done.returncode:
        raise AssertionError(f"stock ComfyUI ended with {done.returncode}\n{done.stderr[-3000:]}")
    return load_file(folder / "velocities.safetensors")
