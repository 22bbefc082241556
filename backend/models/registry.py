"""The families we run, and a checkpoint as a resident model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import OutOfMemory, UnsupportedFamily
from ..parallel.compile import Compiler
from ..parallel.mesh import SequenceMesh
from .adapter import Adapter
from .blueprint import Blueprint
from .checkpoint import PREFIXES, Checkpoint, open_checkpoint
from .families.flux import Flux
from .families.flux2 import Flux2
from .families.hunyuan_video import HunyuanVideo
from .families.ltx_video import LtxVideo
from .families.qwen_image import QwenImage
from .families.sd3 import Sd3
from .families.wan import Wan
from .families.z_image import ZImage
from .family import Family
from .lora.variants import Variants
from .packed import packed_bytes

FAMILIES: tuple[Family[Any], ...] = (Flux(), Sd3(), Wan(), ZImage(), QwenImage(), Flux2(), LtxVideo(), HunyuanVideo())
"""The first one that recognises a file gets it: a narrower family comes first."""


WeightBytes = Callable[[torch.dtype], int]
"""Compute dtype -> bytes that a checkpoint's weights take in it."""


class ResidentModel:
    """A loaded checkpoint. Between jobs it stays where it is."""

    def __init__(
        self,
        *,
        family: str,
        num_heads: int,
        dtype: torch.dtype,
        device: torch.device,
        size_bytes: int,
        adapter: Adapter,
        variants: Variants | None = None,
    ) -> None:
        self.family = family
        self.num_heads = num_heads
        self.dtype = dtype
        self.device = device
        self.size_bytes = size_bytes
        self.adapter = adapter
        self.variants = variants
        """Its LoRA sets; None for a model that has no weights to change."""

    @property
    def held_bytes(self) -> int:
        """Its weights, and those that LoRAs put beside them, where they are more than pages of a file."""
        if self.variants is None:
            return self.size_bytes
        changed = self.variants.private_bytes
        if self.device.type != "cpu":
            changed += self.variants.size_bytes(self.variants.current)
        return self.size_bytes + changed

    def bind(self, mesh: SequenceMesh, compiler: Compiler | None = None) -> None:
        """Run on this mesh from now on, compiled as ``compiler`` decides. Cheap; nothing happens when it is the current one."""
        self.adapter.bind(mesh, compiler)


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float], None],
    make_room: Callable[[WeightBytes], None] = lambda _: None,
    shared_file: Path | None = None,
) -> ResidentModel:
    """Load a checkpoint and compute in ``dtype`` on ``device``; ``progress`` hears fractions up to 1.

    ``make_room`` is told what the weights will take before any is read, and may refuse. On the CPU, ranks of one host share in ``shared_file``
    what they have to convert.

    Raises :class:`BadCheckpoint`, :class:`UnsupportedFamily`, or :class:`OutOfMemory`.
    """
    family, weights = find_family(open_checkpoint(path))
    blueprint = Blueprint(family, weights)
    make_room(blueprint.weight_bytes)
    try:
        adapter = blueprint.load(dtype=dtype, device=device, progress=progress, shared_file=shared_file)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            "Choose a smaller checkpoint or weight dtype: the model does not fit into the GPU's memory."
        ) from error
    # Tables of positions are buffers, and large ones; packed weights are not in the state.
    network = adapter.network
    size_bytes = sum(tensor.nbytes for tensor in network.state_dict().values()) + packed_bytes(network)
    return ResidentModel(
        family=family.name,
        num_heads=blueprint.num_heads,
        dtype=dtype,
        device=device,
        size_bytes=size_bytes,
        adapter=adapter,
        variants=Variants(adapter, weights),
    )


def import_networks() -> None:
    """Import what all families' networks are built from. Takes seconds, the first time in a process."""
    from diffusers.models.transformers import transformer_flux  # noqa: F401


def find_family(checkpoint: Checkpoint) -> tuple[Family[Any], Checkpoint]:
    """The family of a file, and the file seen through its prefix. Raises :class:`UnsupportedFamily` that lists what we run."""
    for prefix in PREFIXES:
        weights = checkpoint.under(prefix)
        for family in FAMILIES:
            if family.recognises(weights):
                return family, weights
    known = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedFamily(
        f"Choose a checkpoint of a family that this release runs: {known}. This file is of none of them."
    )
