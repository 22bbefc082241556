"""Who computes: the Triton kernel, or the torch reference."""

from __future__ import annotations

import functools
import importlib.util

from torch import Tensor


@functools.cache
def has_triton() -> bool:
    """Whether triton can be imported; it comes with torch's CUDA builds, and is not asked for elsewhere."""
    return importlib.util.find_spec("triton") is not None


def runs_triton(*tensors: Tensor) -> bool:
    """Whether a kernel takes these tensors: all are on a CUDA device and real, and triton is there.

    Subclasses (fake tensors among them) have no memory of their own that a kernel could read: torch operators know what to do with them.
    """
    return has_triton() and all(type(tensor) is Tensor and tensor.is_cuda for tensor in tensors)
