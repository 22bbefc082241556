"""Stock ComfyUI's FLUX network on the CPU, without its server: run by the Python of a ComfyUI's own environment, never imported.

    <comfyui>/venv/bin/python stock_flux.py <comfyui>/ComfyUI <folder> <threads>

The folder holds ``job.json`` (checkpoint, dtype, cases) and ``inputs.safetensors`` (``<case>/x``, ``<case>/timestep``, ``<case>/context`` ...). Each line on
standard input names a case; its answer is a line with the seconds that the call took. At the end of the input the last velocity of
every case is written to ``velocities.safetensors``. The checkpoint goes through ComfyUI's own detection and loading.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    comfyui, folder, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # ComfyUI reads the command line itself, and prints to standard output.
    answers, sys.stdout = sys.stdout, sys.stderr
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(threads)
    job = json.loads((folder / "job.json").read_text())
    dtype = getattr(torch, job["dtype"])
    patcher = comfy.sd.load_diffusion_model(job["checkpoint"], model_options={"dtype": dtype})
    network = patcher.model.diffusion_model
    inputs = load_file(folder / "inputs.safetensors")
    calls = {case["name"]: arguments(case, inputs, dtype) for case in job["cases"]}
    velocities = {}
    with torch.no_grad():
        for line in sys.stdin:
            name = line.strip()
            started = time.perf_counter()
            velocities[name] = network(**calls[name])
            print(time.perf_counter() - started, file=answers, flush=True)
    save_file({name: v.float().contiguous() for name, v in velocities.items()}, folder / "velocities.safetensors")


def arguments(case: dict[str, Any], inputs: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """What ComfyUI's model base would hand to the network: everything in the compute dtype, but the timestep in float32."""

    def get(name: str) -> Any:
        tensor = inputs.get(f"{case['name']}/{name}")
        return None if tensor is None else tensor.to(dtype)

    x = get("x")
    call = {
        "x": x,
        "timestep": inputs[f"{case['name']}/timestep"],
        "context": get("context"),
        "y": get("pooled"),
        "guidance": get("guidance"),
        "transformer_options": {},
    }
    references = [get(f"ref_latents.{number}") for number in range(case["references"])]
    if references:
        call["ref_latents"] = [reference.repeat(x.shape[0], 1, 1, 1) for reference in references]
    if case["method"]:
        call["ref_latents_method"] = case["method"]
    return call


if __name__ == "__main__":
    main()
