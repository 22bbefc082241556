"""Sharding by plain forward hooks: inputs are cut when the network is entered, the output is gathered where the family says.

Nothing but tensor operations happens inside the hooks, so that they trace in a full graph. On one rank no hook is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InternalError
from .mesh import SequenceMesh
from .partition import Partition, StreamSplit


@dataclass(frozen=True, slots=True)
class Split:
    """One keyword argument of the network that is cut."""

    argument: str
    stream: str
    dim: int
    """Its token dimension."""


@dataclass(frozen=True, slots=True)
class Gather:
    """The module whose output is put together again from all ranks."""

    module: str
    stream: str
    """Its output is ``[batch, tokens, channels]`` of this stream."""


class Sharder:
    """The hooks of one network on one mesh; :attr:`partition` is set before every call."""

    def __init__(self, mesh: SequenceMesh, splits: tuple[Split, ...], gather: Gather) -> None:
        self._mesh = mesh
        self._splits = splits
        self._gather = gather
        self.partition: Partition | None = None

    def install(self, network: nn.Module) -> Callable[[], None]:
        """Hook into ``network``; returns what takes the hooks out again."""
        if self._mesh.world_size == 1:
            return lambda: None
        handles = [
            network.register_forward_pre_hook(self._cut, with_kwargs=True),
            network.get_submodule(self._gather.module).register_forward_hook(self._join),
        ]

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    def _stream(self, name: str) -> StreamSplit:
        if self.partition is None:
            raise InternalError("The network ran outside a model call: use Binding.call().")
        return self.partition.streams[name]

    def _cut(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cut = {
            split.argument: self._stream(split.stream).shard(kwargs[split.argument], split.dim, self._mesh.rank)
            for split in self._splits
        }
        return args, {**kwargs, **cut}

    def _join(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return gather_stream(output, self._stream(self._gather.stream), self._mesh)


def gather_stream(own_BnC: Tensor, split: StreamSplit, mesh: SequenceMesh) -> Tensor:
    """``[B, n, C]`` on each rank -> ``[B, tokens, C]`` on all of them, without padding; the same bits everywhere. Collective."""
    if mesh.world_size == 1:
        return own_BnC[:, : split.valid[0]]
    most = max(split.held)
    if own_BnC.shape[1] != most:
        own_BnC = nn.functional.pad(own_BnC, (0, 0, 0, most - own_BnC.shape[1]))
    gathered = own_BnC.new_empty(mesh.world_size, *own_BnC.shape)
    mesh.transport.all_gather(gathered, own_BnC.contiguous(), mesh.world.process_group)
    if all(valid == most for valid in split.valid):
        return gathered.transpose(0, 1).flatten(1, 2)
    return torch.cat([gathered[rank, :, :valid] for rank, valid in enumerate(split.valid)], dim=1)
