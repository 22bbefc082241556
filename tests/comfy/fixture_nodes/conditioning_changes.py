"""A node that attaches to CONDITIONING what other packs attach, one thing per name, as small as it can be."""

from __future__ import annotations

from typing import Any

import comfy.controlnet
import comfy.hooks
import torch


class PassingControl(comfy.controlnet.ControlBase):
    """A ControlNet that adds nothing: no weights are needed to see that it is refused."""

    def get_control(self, *args: Any, **kwargs: Any) -> None:
        return None


def _hooks() -> Any:
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.TransformerOptionsHook({}))
    return group


CHANGES: dict[str, dict[str, Any]] = {
    "control": {"control": PassingControl(), "control_apply_to_uncond": True},
    "hooks": {"hooks": _hooks()},
    "area": {"area": (8, 8, 0, 4), "strength": 1.0, "set_area_to_bounds": False},
    "strength": {"strength": 0.7},
    "mask": {"mask": torch.linspace(0, 1, 256).reshape(1, 16, 16), "set_area_to_bounds": False, "mask_strength": 1.0},
    "unheard_of": {"unheard_of": 1},
    "concat": {
        "concat_latent_image": torch.linspace(-1, 1, 16 * 16 * 16).reshape(1, 16, 16, 16),
        "concat_mask": torch.linspace(0, 1, 128 * 128).reshape(1, 1, 128, 128),
    },
    "attention_mask": {"attention_mask": torch.ones(1, 13 + 64, 13 + 64), "attention_mask_img_shape": (8, 8)},
}


class TestConditioningChange:
    """CONDITIONING in, the same with one more entry out."""

    CATEGORY = "tutti tests"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "change"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",), "change": (list(CHANGES),)}}

    def change(self, conditioning: list[Any], change: str) -> tuple[list[Any]]:
        return ([[tensor, {**extra, **CHANGES[change]}] for tensor, extra in conditioning],)
