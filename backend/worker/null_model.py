"""A model without a network, for measuring everything around one. Only a daemon started with ``TUTTI_NULL_MODEL=1`` has it.

With that variable a checkpoint whose file is called ``null.safetensors`` is not read: its velocity is zero for any input. No message
and no workflow can set the variable, and without it such a file is a checkpoint like any other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ..models.adapter import CallSpec, Option
from ..models.registry import ResidentModel, load_model
from ..parallel.mesh import SequenceMesh
from .residency import Loader

VARIABLE: Final = "TUTTI_NULL_MODEL"
FAMILY: Final = "null"
FILE_NAME: Final = "null.safetensors"
NUM_HEADS: Final = 24
"""FLUX's number, so that the same plans are legal."""


class NullAdapter:
    """Accepts every call and answers with zeros."""

    def check(self, request: CallSpec) -> None:
        """Nothing is wrong with any call."""

    def bind(self, mesh: SequenceMesh) -> None:
        """Nothing is split."""

    def velocity(
        self, x: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor], options: Mapping[str, Option]
    ) -> Tensor:
        """Zeros like ``x``, float32."""
        return torch.zeros_like(x, dtype=torch.float32)


def loader_of_this_process() -> Loader:
    """The loader of checkpoints, with the null model if this daemon was started for measuring."""
    return _load_or_null if os.environ.get(VARIABLE) == "1" else load_model


def _load_or_null(
    path: Path, *, dtype: torch.dtype, device: torch.device, progress: Callable[[float], None]
) -> ResidentModel:
    if path.name != FILE_NAME:
        return load_model(path, dtype=dtype, device=device, progress=progress)
    return ResidentModel(
        family=FAMILY, num_heads=NUM_HEADS, dtype=dtype, device=device, size_bytes=0, adapter=NullAdapter()
    )
