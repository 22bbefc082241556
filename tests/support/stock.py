"""Stock ComfyUI's own network as a reference: a separate process, from the environment of ``install.py comfyui``."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from safetensors.torch import load_file
from torch import Tensor
from tutti.comfy_nodes.families import FAMILIES, Family

from tests.support.calls import DrawnCall, write_calls

REPOSITORY = Path(__file__).resolve().parents[2]
COMFYUI = REPOSITORY / ".comfyui" / "0.30.0"

NETWORK_NAMES: Final = {"c_crossattn": "context"}
"""Keys of ``model_conds`` that the network calls otherwise."""

needs_comfyui = pytest.mark.skipif(
    not (COMFYUI / "venv" / "bin" / "python").exists(), reason="needs a ComfyUI: python3 install.py comfyui"
)


@dataclass(frozen=True, kw_only=True)
class StockFile:
    """A checkpoint and the calls to make on it."""

    path: Path
    calls: Mapping[str, DrawnCall]
    loras: Sequence[tuple[Path, float]] = ()
    """Files and strengths, put in by ComfyUI's own loader."""
    unet_config: Mapping[str, Any] = field(default_factory=dict)
    """Changes what ComfyUI's detection hard-codes for this family, so that it loads a small checkpoint."""


def stock_velocities(
    checkpoint: Path, calls: Mapping[str, DrawnCall], folder: Path, *, dtype: str = "float32"
) -> dict[str, Tensor]:
    """The velocity of every call of one FLUX.1 from stock ComfyUI's network, float32."""
    return stock_runs([StockFile(path=checkpoint, calls=calls)], folder, family="flux", dtype=dtype)


def stock_runs(
    files: Sequence[StockFile], folder: Path, *, family: str, dtype: str = "float32", timeout_s: float = 100
) -> dict[str, Tensor]:
    """The velocity of every call from stock ComfyUI's network, float32. Names of calls differ between files."""
    folder.mkdir(parents=True)
    calls = {name: call for file in files for name, call in file.calls.items()}
    write_calls(calls, folder)
    face = next(known for known in FAMILIES if known.name == family)
    cases = [
        {
            "name": name,
            "checkpoint": str(file.path),
            "loras": [[str(path), strength] for path, strength in file.loras],
            "arguments": network_arguments(face, call),
            "options": dict(call.options),
        }
        for file in files
        for name, call in file.calls.items()
    ]
    configs = {str(file.path): dict(file.unet_config) for file in files}
    (folder / "job.json").write_text(json.dumps({"dtype": dtype, "cases": cases, "unet_config": configs}))
    script = REPOSITORY / "benchmarks" / "stock_network.py"
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


def network_arguments(face: Family, call: DrawnCall) -> dict[str, str | list[str]]:
    """Argument of ComfyUI's network -> which of the call's tensors it is, by the names that the pack itself uses."""
    arguments: dict[str, str | list[str]] = {}
    for key, name in face.tensors.items():
        if name in call.conditioning:
            arguments[NETWORK_NAMES.get(key, key)] = name
    for key, prefix in face.lists.items():
        count = sum(name.startswith(f"{prefix}.") for name in call.conditioning)
        if count:
            arguments[key] = [f"{prefix}.{number}" for number in range(count)]
    return arguments
