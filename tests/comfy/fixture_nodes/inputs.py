"""Nodes that make random conditioning and random latents.

``nonce`` is ignored on purpose: ComfyUI caches a node whose inputs did not change, so a test that repeats a workflow changes the nonce.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
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
            "optional": {"masked": ("BOOLEAN", {"default": False}), "nonce": NONCE},
        }

    def make(
        self, seed: int, tokens: int, width: int, pooled_width: int, masked: bool = False, nonce: int = 0
    ) -> tuple[list[Any]]:
        """`masked`: with a mask that lets every token through."""
        generator = torch.Generator().manual_seed(seed)
        extra: dict[str, Any] = {}
        if pooled_width:
            extra["pooled_output"] = torch.randn(1, pooled_width, generator=generator)
        if masked:
            extra["attention_mask"] = torch.ones(1, tokens, dtype=torch.int64)
        return ([[torch.randn(1, tokens, width, generator=generator), extra]],)


class TestVideoStart:
    """CONDITIONING in, the same with a video's first frame out, as ComfyUI's image-to-video nodes attach it; `vision_tokens` above 0 adds what
    a CLIP vision model sees in it."""

    CATEGORY = "tutti tests"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "attach"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",), "latent": ("LATENT",), "vision_tokens": SIZE}}

    def attach(self, conditioning: list[Any], latent: dict[str, Any], vision_tokens: int) -> tuple[list[Any]]:
        samples = latent["samples"]
        mask = torch.ones(1, 1, *samples.shape[2:])
        mask[:, :, 0] = 0
        added: dict[str, Any] = {"concat_latent_image": samples, "concat_mask": mask}
        if vision_tokens:
            seen = torch.randn(1, vision_tokens, 1280, generator=torch.Generator().manual_seed(5))
            added["clip_vision_output"] = SimpleNamespace(penultimate_hidden_states=seen)
        return ([[tensor, {**extra, **added}] for tensor, extra in conditioning],)


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
            "optional": {"frames": SIZE, "nonce": NONCE},
        }

    def make(
        self,
        seed: int,
        batch: int,
        channels: int,
        height: int,
        width: int,
        scale: float,
        frames: int = 0,
        nonce: int = 0,
    ) -> tuple[dict[str, Any]]:
        """`frames` above 0 makes the latent of a video."""
        generator = torch.Generator().manual_seed(seed)
        sizes = (frames, height, width) if frames else (height, width)
        return ({"samples": torch.randn(batch, channels, *sizes, generator=generator) * scale},)
