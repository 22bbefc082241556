"""Models that stay in memory between jobs, the least recently used one dropped first."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from ..errors import OutOfMemory
from ..models.host_share import forget
from ..models.registry import ResidentModel, WeightBytes
from ..parallel.memory import is_out_of_memory
from .memory import Memory, gigabytes

log = logging.getLogger(__name__)


class Loader(Protocol):
    """Reads a checkpoint: :func:`..models.registry.load_model`."""

    def __call__(
        self,
        path: Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[float], None],
        make_room: Callable[[WeightBytes], None],
        shared_file: Path | None,
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

    def __init__(self, load: Loader, memory: Memory, *, budget_bytes: int, shared_folder: Path | None = None) -> None:
        """``shared_folder``: where ranks of this host keep weights that had to be converted, once for all of them."""
        self._load = load
        self.memory = memory
        self._budget_bytes = budget_bytes
        self._shared_folder = shared_folder
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
        model = self._load_with_retry(key, name, progress)
        self._models[key] = (name, model)
        self._drop_old(wanted_bytes=0, keep=1)
        return model

    @property
    def names(self) -> tuple[str, ...]:
        """The resident models' names, most recently used first, each once."""
        return tuple(dict.fromkeys(name for name, _ in reversed(self._models.values())))

    def _load_with_retry(self, key: ModelKey, name: str, progress: Callable[[float], None]) -> ResidentModel:
        """Load; when memory runs out and other models hold some of it, drop them all and try once more."""
        load = partial(
            self._load,
            Path(key.path),
            dtype=key.dtype,
            device=self.memory.device,
            progress=progress,
            make_room=partial(self._make_room, key, name),
            shared_file=self._shared_file(key),
        )
        try:
            return load()
        except Exception as error:
            self._forget(key)
            if not (isinstance(error, OutOfMemory) or is_out_of_memory(error)) or not self._models:
                raise
            log.info("no memory for another model: dropping the resident ones")
        self._drop(list(self._models))
        try:
            return load()
        except Exception:
            self._forget(key)
            raise

    def _make_room(self, key: ModelKey, name: str, weight_bytes: WeightBytes) -> None:
        """Before a model is read: drop what the budget has no room for beside it, and refuse what does not fit at all."""
        wanted_bytes = weight_bytes(key.dtype)
        self._drop_old(wanted_bytes=wanted_bytes, keep=0)
        log.info("loading %s: weights of %s, %s free", name, gigabytes(wanted_bytes), gigabytes(self.memory.free_bytes))
        self.memory.check_fits(name, weight_bytes, key.dtype)

    def _drop_old(self, *, wanted_bytes: int, keep: int) -> None:
        """Drop the models that were used longest ago, all but ``keep``, until ``wanted_bytes`` more fit into the budget."""
        used = sum(model.held_bytes for _, model in self._models.values())
        oldest_first = list(self._models.items())
        dropped = []
        for key, (_, model) in oldest_first[: len(oldest_first) - keep]:
            if used + wanted_bytes <= self._budget_bytes:
                break
            used -= model.held_bytes
            dropped.append(key)
        self._drop(dropped)

    def _drop(self, keys: list[ModelKey]) -> None:
        for key in keys:
            name, model = self._models.pop(key)
            log.info("dropping %s from memory", name)
            if model.variants is not None:
                model.variants.close()
            self._forget(key)
        if keys:
            self.memory.free()

    def _forget(self, key: ModelKey) -> None:
        """Remove what this model's ranks shared."""
        if shared := self._shared_file(key):
            forget(shared)

    def _shared_file(self, key: ModelKey) -> Path | None:
        if self._shared_folder is None:
            return None
        said = f"{key.path}|{key.fingerprint}|{key.dtype}"
        return self._shared_folder / f"model-{hashlib.blake2b(said.encode(), digest_size=16).hexdigest()}.safetensors"
