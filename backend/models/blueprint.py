"""A checkpoint and the empty network that it fits: what its weights will take is known before any of them is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadCheckpoint
from .checkpoint import Checkpoint, Source, assemble, check_complete, stays_packed
from .family import Family, TransformerAdapter
from .packed import pack_linears


class Blueprint:
    """One file of one family, nothing read but its header."""

    def __init__(self, family: Family[Any], checkpoint: Checkpoint) -> None:
        """Raises ``BadCheckpoint`` where the shapes are no geometry of the family."""
        self.family = family
        self._checkpoint = checkpoint
        self._geometry = family.geometry_of(checkpoint)
        self._network = family.empty_network(self._geometry)
        self._find: Callable[[str], Source] = family.sources(checkpoint, self._geometry)
        self._linears = {name for name, module in self._network.named_modules() if isinstance(module, nn.Linear)}

    @property
    def num_heads(self) -> int:
        """Attention heads: what a ulysses degree must divide."""
        return self.family.num_heads(self._geometry)

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """What the weights will take: numbers in ``dtype``, and packed ones as they are stored."""
        numbers, packed = 0, {}
        for name, parameter in self._network.state_dict().items():
            source = self._find(name)
            if stays_packed(self._checkpoint, name, source, self._linears):
                packed[source.name] = self._checkpoint.stored_bytes(source.name)
            else:
                numbers += parameter.numel() * dtype.itemsize
        return numbers + sum(packed.values())

    def load(
        self,
        *,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[float], None],
        shared_file: Path | None = None,
    ) -> TransformerAdapter:
        """The network with its weights; once.

        On the CPU, ranks of one host share what has to be converted in ``shared_file``.

        Raises:
            BadCheckpoint: a tensor is missing, misshapen or not used; the message names it.
        """
        network = self._network
        checkpoint = self._checkpoint.without(self.family.unread)
        check_complete(checkpoint, network.state_dict(), self._find)
        if shared_file is not None and device.type == "cpu":
            checkpoint = checkpoint.shared_in(dtype, shared_file, progress)
        weights = assemble(
            checkpoint,
            network.state_dict(),
            self._find,
            linears=self._linears,
            dtype=dtype,
            device=device,
            progress=progress,
        )
        pack_linears(network, weights.packed)
        network.load_state_dict(weights.state, strict=True, assign=True)
        if stray := [
            name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta
        ]:
            raise BadCheckpoint(f"Choose another checkpoint: nothing in it fills {', '.join(stray[:8])}.")
        return TransformerAdapter(self.family, network, self._geometry, dtype, device)
