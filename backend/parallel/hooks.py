"""Sharding by plain forward hooks: tensors are cut where the family says, and one output is put together again.

Nothing but tensor operations happens inside the hooks, so that they trace in a full graph. On one rank no hook is installed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InternalError
from .mesh import SequenceMesh
from .partition import Partition, StreamSplit

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Split:
    """One argument of a module that is cut when the module is entered."""

    argument: str
    """Its name in the module's ``forward``; it may be passed by position. None is left alone."""
    stream: str
    dim: int
    """Its token dimension."""
    module: str = ""
    """Empty: the network itself."""
    only_with_dims: int | None = None
    """Cut only a tensor of so many dimensions: a timestep is one number per picture or one per token."""


@dataclass(frozen=True, slots=True)
class SplitOutput:
    """One output of a module that is cut when the module is left; the module's other outputs stay whole."""

    module: str
    index: int
    """Which of the module's outputs."""
    stream: str
    dim: int


@dataclass(frozen=True, slots=True)
class Gather:
    """The module whose output is put together again from all ranks."""

    module: str
    stream: str
    """Its output is ``[batch, tokens, channels]`` of this stream."""


class Sharder:
    """The hooks of one network on one mesh; :attr:`partition` is set before every call."""

    def __init__(self, mesh: SequenceMesh, splits: Sequence[Split | SplitOutput], gather: Gather) -> None:
        self._mesh = mesh
        self._splits = splits
        self._gather = gather
        self.partition: Partition | None = None

    def install(self, network: nn.Module) -> Callable[[], None]:
        """Hook into ``network``; returns what takes the hooks out again.

        Raises:
            InternalError: a module has no argument of that name.
        """
        if self._mesh.world_size == 1:
            return lambda: None
        # A collective with counters of its own: where the whole network is compiled, the graph is cut here.
        join = torch.compiler.disable(self._join)  # type: ignore[no-untyped-call]
        handles = [network.get_submodule(self._gather.module).register_forward_hook(join)]
        for split in self._splits:
            module = network.get_submodule(split.module)
            if isinstance(split, SplitOutput):
                handles.append(module.register_forward_hook(self._output_hook(split)))
            else:
                hook = self._input_hook(split, _position(module, split))
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    def _stream(self, name: str) -> StreamSplit:
        if self.partition is None:
            raise InternalError("The network ran outside a model call: use Binding.call().")
        return self.partition.streams[name]

    def _cut(self, tensor: Any, split: Split | SplitOutput) -> Any:
        if tensor is None:
            return None
        return self._stream(split.stream).shard(tensor, split.dim, self._mesh.rank)

    def _input_hook(
        self, split: Split, position: int
    ) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Arguments]:
        def cut(tensor: Any) -> Any:
            skipped = split.only_with_dims is not None and tensor.ndim != split.only_with_dims
            return tensor if skipped else self._cut(tensor, split)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
            if position < len(args):
                return (*args[:position], cut(args[position]), *args[position + 1 :]), kwargs
            return args, {**kwargs, split.argument: cut(kwargs[split.argument])}

        return hook

    def _output_hook(self, split: SplitOutput) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, Tensor):
                return self._cut(output, split)
            return (*output[: split.index], self._cut(output[split.index], split), *output[split.index + 1 :])

        return hook

    def _join(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return gather_stream(output, self._stream(self._gather.stream), self._mesh)


def _position(module: nn.Module, split: Split) -> int:
    """Where the argument stands; looked up once, because nothing may be looked up in a hook that is traced."""
    names = list(inspect.signature(module.forward).parameters)
    if split.argument not in names:
        raise InternalError(
            f"{split.module or 'The network'} takes no {split.argument}: the family's sharding is wrong."
        )
    return names.index(split.argument)


def gather_stream(own_BnC: Tensor, split: StreamSplit, mesh: SequenceMesh) -> Tensor:
    """``[B, n, C]`` on each rank -> ``[B, tokens, C]`` on all of them, without padding; the same bits everywhere. Collective."""
    if mesh.world_size == 1:
        return own_BnC[:, : split.valid[0]]
    most = max(split.held)
    if own_BnC.shape[1] != most:
        own_BnC = nn.functional.pad(own_BnC, (0, 0, 0, most - own_BnC.shape[1]))
    gathered = own_BnC.new_empty(mesh.world_size, *own_BnC.shape)
    mesh.transport.all_gather(gathered, own_BnC.contiguous(), mesh.sequence.process_group)
    if all(valid == most for valid in split.valid):
        return gathered.transpose(0, 1).flatten(1, 2)
    return torch.cat([gathered[rank, :, :valid] for rank, valid in enumerate(split.valid)], dim=1)
