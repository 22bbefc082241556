"""Models that stay in memory between jobs, the least recently used one dropped first."""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Protocol

import psutil
import torch

from ..errors import OutOfMemory
from ..models.registry import ResidentModel
from .failure import is_out_of_memory

MEMORY_SHARE: Final = 0.6
"""Share of the memory that models may keep between jobs; the rest is for activations (and, on the CPU, for everybody else)."""

log = logging.getLogger(__name__)


class Loader(Protocol):
    """Reads a checkpoint: :func:`..models.registry.load_model`."""

    def __call__(
        self, path: Path, *, dtype: torch.dtype, device: torch.device, progress: Callable[[float], None]
    ) -> ResidentModel:
        """The model; ``progress`` hears fractions up to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKey:
    """What makes two models the same one."""

    path: str
    fingerprint: str
    dtype: torch.dtype


class ResidentModels:
    """The models in memory. The one that was asked for last is never dropped for room."""

    def __init__(self, load: Loader, device: torch.device, budget_bytes: int) -> None:
        self._load = load
        self._device = device
        self._budget_bytes = budget_bytes
        self._models: OrderedDict[ModelKey, tuple[str, ResidentModel]] = OrderedDict()

    def get(self, key: ModelKey, name: str, progress: Callable[[float], None]) -> ResidentModel:
        """The model of ``key``, loaded if it is not resident. ``name`` is what people call it.

        Raises:
            BadCheckpoint, UnsupportedFamily, OutOfMemory: as the loader does; other models may have been dropped by then.
        """
        if key in self._models:
            self._models.move_to_end(key)
            return self._models[key][1]
        self._drop([known for known in self._models if known.path == key.path and known.fingerprint != key.fingerprint])
        self._make_room(wanted_bytes=_file_bytes(key.path), keep=0)
        model = self._load_with_retry(key, progress)
        self._models[key] = (name, model)
        self._make_room(wanted_bytes=0, keep=1)
        return model

    @property
    def names(self) -> tuple[str, ...]:
        """The resident models' names, most recently used first, each once."""
        return tuple(dict.fromkeys(name for name, _ in reversed(self._models.values())))

    def _load_with_retry(self, key: ModelKey, progress: Callable[[float], None]) -> ResidentModel:
        """Load; when memory runs out and other models hold some of it, drop them all and try once more."""
        try:
            return self._load(Path(key.path), dtype=key.dtype, device=self._device, progress=progress)
        except Exception as error:
            if not (isinstance(error, OutOfMemory) or is_out_of_memory(error)) or not self._models:
                raise
            log.info("no memory for another model: dropping the resident ones")
        self._drop(list(self._models))
        return self._load(Path(key.path), dtype=key.dtype, device=self._device, progress=progress)

    def _make_room(self, *, wanted_bytes: int, keep: int) -> None:
        """Drop the models that were used longest ago, all but ``keep``, until ``wanted_bytes`` more fit into the budget."""
        used = sum(model.size_bytes for _, model in self._models.values())
        oldest_first = list(self._models.items())
        dropped = []
        for key, (_, model) in oldest_first[: len(oldest_first) - keep]:
            if used + wanted_bytes <= self._budget_bytes:
                break
            used -= model.size_bytes
            dropped.append(key)
        self._drop(dropped)

    def _drop(self, keys: list[ModelKey]) -> None:
        for key in keys:
            name, _ = self._models.pop(key)
            log.info("dropping %s from memory", name)
        if keys:
            free_memory(self._device)


def free_memory(device: torch.device) -> None:
    """Return what nobody refers to any more to the device, reference cycles included."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def model_budget_bytes(device: torch.device, sharing: int) -> int:
    """How much memory one rank's models may keep between jobs, when ``sharing`` ranks use the same GPU (or the same RAM)."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = psutil.virtual_memory().total
    return int(total * MEMORY_SHARE / sharing)


def used_bytes(device: torch.device) -> int:
    """Memory that this rank uses: allocated on its GPU, or resident in RAM."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(_this_process().memory_info().rss)


@cache
def _this_process() -> psutil.Process:
    """Made once: finding itself costs a tenth of a millisecond, which is much after every Evaluate."""
    return psutil.Process()


def _file_bytes(path: str) -> int:
    """Size of a checkpoint: about what it will take; 0 for one that is not there, which the loader will say better."""
    file = Path(path)
    return file.stat().st_size if file.is_file() else 0
