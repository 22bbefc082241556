"""Stock ComfyUI's FLUX network on the CPU, without its server: run by the Python of a ComfyUI's own environment, never imported.

    <comfyui>/venv/bin/python stock_flux.py <comfyui>/ComfyUI <folder> [threads]

The folder holds ``job.json`` (checkpoint, dtype, cases, repeats) and ``inputs.safetensors`` (``<case>/x``, ``<case>/timestep``, ``<case>/context`` ...);
``velocities.safetensors`` and, when calls are repeated, ``times.json`` come back. The checkpoint goes through ComfyUI's own detection, so this
also shows that ComfyUI itself reads the file.
"""

import json
import sys
import time
from pathlib import Path


def main():
    comfyui, folder = Path(sys.argv[1]), Path(sys.argv[2])
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    sys.path.insert(0, str(comfyui))
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    torch.set_num_threads(threads)
    import comfy.sd
    from safetensors.torch import load_file, save_file

    job = json.loads((folder / "job.json").read_text())
    dtype = getattr(torch, job["dtype"])
    patcher = comfy.sd.load_diffusion_model(job["checkpoint"], model_options={"dtype": dtype})
    network = patcher.model.diffusion_model
    inputs = load_file(folder / "inputs.safetensors")
    velocities, times = {}, {}
    with torch.no_grad():
        for case in job["cases"]:
            call = arguments(case, inputs, dtype)
            velocities[case["name"]] = network(**call).float().contiguous()
            for _ in range(job.get("repeats", 0)):
                started = time.perf_counter()
                network(**call)
                times.setdefault(case["name"], []).append(time.perf_counter() - started)
    save_file(velocities, folder / "velocities.safetensors")
    (folder / "times.json").write_text(json.dumps(times))


def arguments(case, inputs, dtype):
    """What ComfyUI's model base would hand to the network: everything in the compute dtype, but the timestep in float32."""

    def get(name):
        tensor = inputs.get(f"{case['name']}/{name}")
        return None if tensor is None else tensor.to(dtype)

    x = get("x")
    call = {
        "x": x,
        "context": get("context"),
        "y": get("pooled"),
        "guidance": get("guidance"),
        "transformer_options": {},
    }
    call["timestep"] = inputs[f"{case['name']}/timestep"]
    references = [get(f"ref_latents.{number}") for number in range(case["references"])]
    if references:
        call["ref_latents"] = [reference.repeat(x.shape[0], 1, 1, 1) for reference in references]
    if case["method"]:
        call["ref_latents_method"] = case["method"]
    return call


main()
