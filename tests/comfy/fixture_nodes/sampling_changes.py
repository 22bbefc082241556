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
            },
            "optional": {
                "cfg": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0}),
                "without_negative": ("BOOLEAN", {"default": False}),
                "replaced": ("BOOLEAN", {"default": False}),
            },
        }

    def sample(
        self, model: Any, positive: Any, latent: Any, sigmas: str, record: bool, cfg: float = 1.0,
        without_negative: bool = False, replaced: bool = False,
    ) -> tuple[dict[str, Any]]:  # fmt: skip
        seen: list[torch.Tensor] = []
        values = torch.FloatTensor([float(value) for value in sigmas.split()])
        noise = comfy.sample.prepare_noise(latent["samples"], 7)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, positive)
        if without_negative:
            del guider.original_conds["negative"]
        guider.set_cfg(cfg)
        sampler = comfy.samplers.sampler_object("euler")
        if replaced:
            own = sampler.sample
            sampler.sample = lambda *args, **kwargs: own(*args, **kwargs)
        samples = guider.sample(
            noise,
            latent["samples"],
            sampler,
            values,
            callback=(lambda step, x0, x, total: seen.append(x0.mean())) if record else None,
            disable_pbar=True,
            seed=7,
        )
        if record:
            samples = samples + torch.stack(seen).sum()
        return ({"samples": samples},)
