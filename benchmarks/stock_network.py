"""Stock ComfyUI's own network of any family on the CPU, without its server: run by the Python of a ComfyUI's own environment, never imported.

    <comfyui>/venv/bin/python stock_network.py <comfyui>/ComfyUI <folder> <threads>

The folder holds ``job.json`` (dtype, cases with their checkpoints and LoRAs) and ``inputs.safetensors`` (``<case>/x``, ``<case>/timestep``, ``<case>/context`` ...). A case says which
argument of the network is which of its tensors. ``unet_config`` in the job, by checkpoint, replaces what ComfyUI's detection hard-codes for a family (a width that
small test checkpoints do not have). Each line on standard input names a case; its answer is a line with the seconds that the call took. At the end of the input the last velocity of
every case is written to ``velocities.safetensors``. Checkpoints go through ComfyUI's own detection and loading.
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
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(threads)
    job = json.loads((folder / "job.json").read_text())
    dtype = getattr(torch, job["dtype"])
    inputs = load_file(folder / "inputs.safetensors")
    calls = {case["name"]: arguments(case, inputs, dtype) for case in job["cases"]}
    configs = job.get("unet_config", {})
    wanted = {case["name"]: (case["checkpoint"], json.dumps(case.get("loras", []))) for case in job["cases"]}
    networks = {
        (path, loras): load(path, configs.get(path, {}), dtype, json.loads(loras))
        for path, loras in set(wanted.values())
    }
    velocities = {}
    with torch.no_grad():
        for line in sys.stdin:
            name = line.strip()
            network = networks[wanted[name]]
            started = time.perf_counter()
            latent, named = calls[name]
            velocities[name] = network(*latent, **named)
            print(time.perf_counter() - started, file=answers, flush=True)
    save_file({name: v.float().contiguous() for name, v in velocities.items()}, folder / "velocities.safetensors")


def load(path: str, unet_config: dict[str, Any], dtype: Any, loras: list[list[Any]]) -> Any:
    """The network of a checkpoint, through ComfyUI's own detection; ``unet_config`` replaces some of what that finds.

    ``loras``: (file, strength), put in by ComfyUI's own LoRA loader, in order.
    """
    import comfy.model_detection
    import comfy.sd
    import comfy.utils

    detect = comfy.model_detection.detect_unet_config

    def detect_changed(*args: Any, **kwargs: Any) -> Any:
        found = detect(*args, **kwargs)
        return None if found is None else {**found, **unet_config}

    comfy.model_detection.detect_unet_config = detect_changed
    try:
        patcher = comfy.sd.load_diffusion_model(path, model_options={"dtype": dtype})
        for file, strength in loras:
            lora = comfy.utils.load_torch_file(file, safe_load=True)
            patcher, _ = comfy.sd.load_lora_for_models(patcher, None, lora, strength, 0.0)
        patcher.patch_model()
        return patcher.model.diffusion_model
    finally:
        comfy.model_detection.detect_unet_config = detect


def arguments(case: dict[str, Any], inputs: dict[str, Any], dtype: Any) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """What ComfyUI's model base would hand to the network: everything in the compute dtype, but integers and the timestep.

    x and the timestep go by position, because networks call them differently; everything else goes by name.
    A list (reference latents) is repeated to the batch, as ComfyUI's conditioning does.
    """

    def get(name: str) -> Any:
        tensor = inputs.get(f"{case['name']}/{name}")
        return tensor if tensor is None or not tensor.is_floating_point() else tensor.to(dtype)

    x = get("x")

    def listed(names: list[str]) -> list[Any]:
        tensors = [get(name) for name in names]
        return [tensor.repeat(x.shape[0] // tensor.shape[0], *(1,) * (tensor.ndim - 1)) for tensor in tensors]

    named = {
        argument: listed(parts) if isinstance(parts, list) else get(parts)
        for argument, parts in case["arguments"].items()
    }
    timestep = inputs[f"{case['name']}/timestep"]
    return (x, timestep), {**named, **case["options"], "transformer_options": {}}


if __name__ == "__main__":
    main()
