"""Runs in ComfyUI's own environment: the golden cases through ComfyUI's samplers, its CONST maths, its inpainting and its guidance.

    python comfyui_runs.py COMFYUI_FOLDER CASES.json RESULTS.safetensors

For every case it writes ``<name>/x`` (what KSAMPLER.sample returns) and ``<name>/denoised`` (the last callback's).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

comfyui_folder, cases_file, results_file = map(Path, sys.argv[1:])
sys.path[:0] = [str(comfyui_folder), str(Path(__file__).parent)]
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.model_sampling  # noqa: E402
import comfy.samplers  # noqa: E402
from comfy.k_diffusion import sampling  # noqa: E402
from toy_flow import SIGMAS, inputs, velocity  # noqa: E402


class Guider:
    """Stands where ComfyUI's CFGGuider stands: the toy network, ComfyUI's maths around it."""

    def __init__(self, cfg: float) -> None:
        self.cfg = cfg
        self.flow = type("Sampling", (comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST), {})(None)
        self.inner_model = SimpleNamespace(model_sampling=self.flow, scale_latent_inpaint=self.scale_latent_inpaint)
        self.model_patcher = SimpleNamespace(model=self)

    def scale_latent_inpaint(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        return self.flow.noise_scaling(sigma.reshape(-1, 1, 1, 1), noise, latent_image)

    def denoised(self, x: torch.Tensor, sigma: torch.Tensor, branch: int) -> torch.Tensor:
        return self.flow.calculate_denoised(sigma, velocity(x, sigma.reshape(-1, 1, 1, 1), branch), x)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        if self.cfg == 1.0:
            return self.denoised(x, sigma, 0)
        return comfy.samplers.cfg_function(
            None, self.denoised(x, sigma, 0), self.denoised(x, sigma, 1), self.cfg, x, sigma
        )


def run(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    given, last = inputs(case["dtype"]), {}
    sampler = comfy.samplers.KSAMPLER(getattr(sampling, f"sample_{case['sampler']}"))
    x = sampler.sample(
        Guider(case["cfg"]),
        torch.tensor(SIGMAS[case["sigmas"]], dtype=getattr(torch, case["dtype"])),
        {"model_options": {}, "seed": 0},
        lambda step, denoised, x, total: last.update(denoised=denoised),
        given["noise"],
        given["latent"],
        given["mask"] if case["masked"] else None,
        True,
    )
    return x, last["denoised"]


results = {}
for case in json.loads(cases_file.read_text()):
    name = f"{case['sampler']}-{case['sigmas']}-{case['dtype']}-cfg{case['cfg']:g}{'-masked' if case['masked'] else ''}"
    results[f"{name}/x"], results[f"{name}/denoised"] = (tensor.contiguous() for tensor in run(case))
save_file(results, results_file)
