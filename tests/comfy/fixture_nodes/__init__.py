"""Test-only ComfyUI nodes: the inputs that a text encoder or an image would give, as seeded random tensors.

Both sides of a parity comparison load this same pack. It is never installed with Tutti. Written to ComfyUI's oldest node API (V1), so that
one file loads on every version under test.
"""

from .conditioning_changes import TestConditioningChange
from .inputs import TestConditioning, TestGivenConditioning, TestLatent, TestVideoStart
from .model_changes import TestModelChange
from .sampling_changes import TestSampler
from .small_detection import install

NODE_CLASS_MAPPINGS = {
    "TestConditioning": TestConditioning,
    "TestGivenConditioning": TestGivenConditioning,
    "TestLatent": TestLatent,
    "TestVideoStart": TestVideoStart,
    "TestConditioningChange": TestConditioningChange,
    "TestModelChange": TestModelChange,
    "TestSampler": TestSampler,
}

install()

__all__ = ["NODE_CLASS_MAPPINGS"]
