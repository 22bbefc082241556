"""Lets ComfyUI load small checkpoints of families whose sizes its detection does not read off the file but knows by heart."""

from __future__ import annotations

import json
import os
from typing import Any

import comfy.model_detection
import comfy.supported_models

VARIABLE = "TEST_UNET_CONFIG"
"""JSON: a tensor that only files of the family have -> what to replace in the detected configuration."""
CLASS = "test_class"
"""There: the class in ``comfy.supported_models``, where ComfyUI would find another one for a small checkpoint."""


def install() -> None:
    """Wrap ComfyUI's detection."""
    changes: dict[str, dict[str, Any]] = json.loads(os.environ.get(VARIABLE, "{}"))
    choose = comfy.model_detection.model_config_from_unet_config
    detect = comfy.model_detection.detect_unet_config

    def detect_small(state_dict: Any, key_prefix: str, *args: Any, **kwargs: Any) -> Any:
        found = detect(state_dict, key_prefix, *args, **kwargs)
        for name, change in changes.items():
            if found is not None and f"{key_prefix}{name}" in state_dict:
                found = {**found, **change}
        return found

    def choose_small(unet_config: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """ComfyUI tells some families apart by their real width."""
        name = unet_config.pop(CLASS, None)
        return getattr(comfy.supported_models, name)(unet_config) if name else choose(unet_config, *args, **kwargs)

    if changes:
        comfy.model_detection.model_config_from_unet_config = choose_small
        comfy.model_detection.detect_unet_config = detect_small
