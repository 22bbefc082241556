"""A rank's memory: what there is, what is used, and whether a model fits."""

from __future__ import annotations

import gc
from functools import cache
from typing import Final

import psutil
import torch

from ..errors import OutOfMemory
from ..models.registry import WeightBytes

MEMORY_SHARE: Final = 0.6
"""Share of the memory that models may keep between jobs; the rest is for activations (and, on the CPU, for everybody else)."""


class Memory:
    """The memory of one rank's device."""

    def __init__(self, device: torch.device, sharing: int) -> None:
        """``sharing``: ranks whose weights lie in the same memory, each with its own copy: one on the CPU, where ranks map the same pages."""
        self.device = device
        self._sharing = sharing

    @property
    def budget_bytes(self) -> int:
        """What this rank's models may keep between jobs."""
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
        else:
            total = psutil.virtual_memory().total
        return int(total * MEMORY_SHARE / self._sharing)

    @property
    def free_bytes(self) -> int:
        """What this rank may still take: what is free, and on a GPU also what torch keeps for it."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return free // self._sharing + kept
        return int(psutil.virtual_memory().available) // self._sharing

    @property
    def used_bytes(self) -> int:
        """What this rank uses: allocated on its GPU, or resident in RAM."""
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        return int(_this_process().memory_info().rss)

    def free(self) -> None:
        """Return what nobody refers to any more to the device, reference cycles included."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def check_fits(self, name: str, weight_bytes: WeightBytes, dtype: torch.dtype) -> None:
        """Raises :class:`OutOfMemory` where the weights of a model alone are too large, with what would fit."""
        wanted, free = weight_bytes(dtype), self.free_bytes
        if wanted <= free:
            return
        in_bf16 = weight_bytes(torch.bfloat16)
        if dtype.itemsize > torch.bfloat16.itemsize and in_bf16 <= free:
            advice = f"Choose the weight dtype BF16 for {name} ({gigabytes(in_bf16)})"
        else:
            advice = f"Choose a quantised file of {name} (fp8 or GGUF) of less than {gigabytes(free)}"
        raise OutOfMemory(f"{advice}: its weights take {gigabytes(wanted)} as asked, and {gigabytes(free)} are free.")

    def check_loras_fit(self, more_bytes: int) -> None:
        """Raises :class:`OutOfMemory` where a GPU has no room for more changed weights than are in it; on the CPU they are mapped."""
        if self.device.type == "cuda" and more_bytes > self.free_bytes:
            raise OutOfMemory(
                f"Use fewer or smaller LoRAs: the weights that they change take {gigabytes(more_bytes)} more, and "
                f"{gigabytes(self.free_bytes)} are free."
            )


def gigabytes(size_bytes: int) -> str:
    """For people: ``23.8 GB``."""
    return f"{size_bytes / 1e9:.1f} GB"


@cache
def _this_process() -> psutil.Process:
    """Made once: finding itself costs a tenth of a millisecond, which is much after every Evaluate."""
    return psutil.Process()
