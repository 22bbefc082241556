"""The LoRA sets of one resident model: which one is in it, and what was computed for the others."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import BadCheckpoint, OutOfMemory
from ..checkpoint import Checkpoint, Source
from ..family import TransformerAdapter
from ..host_share import Shared, forget
from .adapters import Patch
from .read import Target, read_lora, targets_of
from .variant import OriginalWeights, Variant, merged_weights

KEPT: Final = 4
"""Sets whose changed weights stay mapped, so that turns may alternate between them."""
NONE: Final = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA file and how strongly it counts."""

    path: str
    fingerprint: str
    strength: float


class Variants:
    """One network's LoRA sets. Ranks of one host share what is computed: the first of them writes it, all map it."""

    def __init__(self, adapter: TransformerAdapter, checkpoint: Checkpoint) -> None:
        self._adapter = adapter
        self._checkpoint = checkpoint
        self._sets: OrderedDict[str, tuple[Path, Shared]] = OrderedDict()
        self._current = NONE

    def prepare(
        self,
        loras: Sequence[Lora],
        *,
        identity: str,
        folder: Path,
        progress: Callable[[float], None] = lambda _: None,
    ) -> str:
        """Compute (or map) the changed weights of a set; returns its key. No collective.

        ``identity`` names checkpoint and dtype: with the files and strengths it decides what the changed weights are.

        Raises:
            BadCheckpoint: a file cannot be read, or does not belong to this model.
        """
        if not loras:
            return NONE
        said = "|".join([identity, *(f"{lora.path}|{lora.fingerprint}|{lora.strength!r}" for lora in loras)])
        key = hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
        if key not in self._sets:
            path = folder / f"{key}.safetensors"
            self._sets[key] = path, self._merged(loras, path, progress)
        self._sets.move_to_end(key)
        self._drop_old()
        return key

    def checksum(self, key: str) -> str | None:
        """Of a prepared set's weights: equal on every rank, or they do not compute the same. None without LoRAs."""
        return None if key == NONE else self._sets[key][1].checksum

    def size_bytes(self, key: str) -> int:
        """What a prepared set takes on a device beside the network."""
        return 0 if key == NONE else sum(tensor.nbytes for tensor in self._sets[key][1].tensors.values())

    @property
    def private_bytes(self) -> int:
        """What this rank holds of prepared sets for itself, in the host's memory, because there was no room to share it."""
        private = [shared for _, shared in self._sets.values() if shared.is_private]
        return sum(tensor.nbytes for shared in private for tensor in shared.tensors.values())

    def switch(self, key: str) -> None:
        """Put a prepared set into the network, or take the last one out (:data:`NONE`). Cheap where it is in already.

        Raises:
            OutOfMemory: the device has no room for it; no LoRA is in the network then.
        """
        if key == self._current:
            return
        self._current = NONE
        if key == NONE:
            self._variant.remove()
            return
        try:
            self._variant.apply(self._sets[key][1].tensors, self._adapter.device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                "Use fewer or smaller LoRAs: the weights that they change do not fit beside the model."
            ) from error
        self._current = key

    @property
    def current(self) -> str:
        """Key of the set that is in the network."""
        return self._current

    def close(self) -> None:
        """Give back what lies on disk or in memory: the model goes."""
        for path, _ in self._sets.values():
            forget(path)
        self._sets.clear()

    @cached_property
    def _variant(self) -> Variant:
        family, adapter = self._adapter.family, self._adapter
        return Variant(adapter.network, family.key_map(adapter.geometry).source if family.original_marks else Source)

    @cached_property
    def _targets(self) -> dict[str, Target]:
        return targets_of(self._adapter.family, self._adapter.geometry)

    @cached_property
    def _original(self) -> OriginalWeights:
        return OriginalWeights(self._adapter.family, self._adapter.geometry, self._checkpoint)

    def _merged(self, loras: Sequence[Lora], path: Path, progress: Callable[[float], None]) -> Shared:
        patches: list[Patch] = []
        for lora in loras:
            patches += read_lora(_tensors(lora.path), self._targets, strength=lora.strength)
        return merged_weights(self._original, patches, self._adapter.dtype, path, progress)

    def _drop_old(self) -> None:
        while len(self._sets) > KEPT:
            oldest = next(key for key in self._sets if key != self._current)
            path, _ = self._sets.pop(oldest)
            forget(path)


def _tensors(path: str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadCheckpoint("Download the LoRA again: it is no whole safetensors file, or cannot be read.") from error
    return tensors
