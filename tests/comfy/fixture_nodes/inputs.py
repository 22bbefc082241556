"""Nodes that make random conditioning and random latents.

``nonce`` is ignored on purpose: ComfyUI caches a node whose inputs did not change, so a test that repeats a workflow changes the nonce.
"""

from __future__ import annotations

import json
from typing import Any

import torch

SEED = ("INT", {"default": 0, "min": 0, "max": 2**31})
SIZE = ("INT", {"default": 1, "min": 0, "max": 65536})
NONCE = ("INT", {"default": 0, "min": 0, "max": 2**31})


class TestConditioning:
    """CONDITIONING as a FLUX text encoder would give it: [batch, tokens, width] and, unless its width is 0, a pooled vector."""

    CATEGORY = "tutti tests"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"seed": SEED, "tokens": SIZE, "width": SIZE, "pooled_width": SIZE},
            "optional": {"nonce": NONCE},
        }

    def make(self, seed: int, tokens: int, width: int, pooled_width: int, nonce: int = 0) -> tuple[list[Any]]:
        generator = torch.Generator().manual_seed(seed)
        extra: dict[str, Any] = {}
        if pooled_width:
            extra["pooled_output"] = torch.randn(1, pooled_width, generator=generator)
        return ([[torch.randn(1, tokens, width, generator=generator), extra]],)


class TestGivenConditioning:
    """CONDITIONING of the numbers in a JSON text: ``{"context": [[...]], "pooled": [...], "guidance": 2.5}``."""

    CATEGORY = "tutti tests"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"numbers": ("STRING", {"default": "{}"})}}

    def make(self, numbers: str) -> tuple[list[Any]]:
        given = json.loads(numbers)
        extra = {"pooled_output": torch.tensor([given["pooled"]]), "guidance": given["guidance"]}
        return ([[torch.tensor([given["context"]]), extra]],)


class TestLatent:
    """LATENT of normal noise times `scale`: what a VAE encoder would give."""

    CATEGORY = "tutti tests"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seed": SEED,
                "batch": SIZE,
                "channels": SIZE,
                "height": SIZE,
                "width": SIZE,
                "scale": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0}),
            },
            "optional": {"nonce": NONCE},
        }

    def make(
        self, seed: int, batch: int, channels: int, height: int, width: int, scale: float, nonce: int = 0
    ) -> tuple[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        return ({"samples": torch.randn(batch, channels, height, width, generator=generator) * scale},)
