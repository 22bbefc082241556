"""Nodes that sample in ways that KSampler never does: with a callback of their own, with odd sigmas, and by one call outside of any sampler."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import torch


class TestSampler:
    """comfy.sample.sample_custom with chosen sigmas and, if wanted, a callback that records the mean of every step's x0."""

    CATEGORY = "tutti tests"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "latent": ("LATENT",),
                "sigmas": ("STRING", {"default": "1.0 0.5 0.0"}),
                "record": ("BOOLEAN", {"default": False}),
            }
        }

    def sample(self, model: Any, positive: Any, latent: Any, sigmas: str, record: bool) -> tuple[dict[str, Any]]:
        seen: list[torch.Tensor] = []
        values = torch.FloatTensor([float(value) for value in sigmas.split()])
        noise = comfy.sample.prepare_noise(latent["samples"], 7)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, positive)
        guider.set_cfg(1.0)
        samples = guider.sample(
            noise,
            latent["samples"],
            comfy.samplers.sampler_object("euler"),
            values,
            callback=(lambda step, x0, x, total: seen.append(x0.mean())) if record else None,
            disable_pbar=True,
            seed=7,
        )
        if record:
            samples = samples + torch.stack(seen).sum()
        return ({"samples": samples},)
