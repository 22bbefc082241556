"""A network with some of its weights changed, and back again: parameters keep their identity, so that nothing is compiled or loaded anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import BadCheckpoint
from ..checkpoint import Checkpoint, Source
from ..family import Family
from ..host_share import Shared, shared_tensors
from ..keys import respelled
from ..packed import PackedLinear
from .adapters import Patch, patch_weight


def merged_weights(
    original: OriginalWeights,
    patches: Iterable[Patch],
    dtype: torch.dtype,
    path: Path,
    progress: Callable[[float], None] = lambda _: None,
) -> Shared:
    """The changed weights by their original names, computed in float32, rounded to ``dtype``, and shared by the ranks of a host at ``path``.

    Raises:
        BadCheckpoint: an adapter does not fit its weight, or is for one that the model lacks.
    """
    by_weight: dict[str, list[Patch]] = {}
    for patch in patches:
        by_weight.setdefault(patch.weight, []).append(patch)
    if missing := sorted(name for name in by_weight if name not in original):
        raise BadCheckpoint(f"Choose a LoRA for this model: it changes {missing[0]}, which the model does not have.")
    shapes = {name: original.shape(name) for name in by_weight}
    return shared_tensors(
        path, shapes, dtype, lambda name: patch_weight(original.load(name), by_weight[name]), progress
    )


class OriginalWeights:
    """A network's weights by their original names, from a file in either naming: diffusers' keeps apart what the original fuses."""

    def __init__(self, family: Family[Any], geometry: Any, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._spellings = family.spellings
        self._pieces: dict[str, list[tuple[int, str, bool]]] = {}
        """Original name -> its first row, parameter and whether its halves change places; empty where the file has the original names."""
        if family.original_marks and not family.is_original(checkpoint):
            for parameter in family.empty_network(geometry).state_dict():
                source = family.key_map(geometry).source(parameter)
                piece = (source.rows[0] if source.rows else 0, parameter, source.swap_halves)
                self._pieces.setdefault(source.name, []).append(piece)

    def __contains__(self, name: str) -> bool:
        if self._pieces:
            return name in self._pieces
        return respelled(self._checkpoint, name, self._spellings) in self._checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        """A weight's shape."""
        shapes = [self._checkpoint.shape(parameter) for parameter in self._parameters(name)]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def load(self, name: str) -> Tensor:
        """A weight as float32, in memory of its own: it may be written to."""
        if not self._pieces:
            (parameter,) = self._parameters(name)
            return self._checkpoint.load_copy(parameter)
        pieces = []
        for _, parameter, swapped in sorted(self._pieces[name]):
            piece = self._checkpoint.load(parameter, None, torch.float32)
            pieces.append(torch.cat(piece.chunk(2)[::-1]) if swapped else piece)
        return torch.cat(pieces)

    def _parameters(self, name: str) -> list[str]:
        if not self._pieces:
            return [respelled(self._checkpoint, name, self._spellings)]
        return [parameter for _, parameter, _ in sorted(self._pieces[name])]


class Variant:
    """The changes that are in a network now."""

    def __init__(self, network: nn.Module, find: Callable[[str], Source]) -> None:
        """``find`` gives the original name and rows of a parameter of the network as it was loaded."""
        self._network = network
        self._parameters = {name: find(name) for name in _all_weights(network)}
        self._undo: list[Callable[[], None]] = []

    def apply(self, weights: Mapping[str, Tensor], device: torch.device) -> None:
        """Put changed weights (by original names) in; earlier changes are taken out first. All of them, or (with an exception) none."""
        self.remove()
        try:
            for name, source in self._parameters.items():
                if source.name in weights:
                    tensor = weights[source.name]
                    tensor = tensor if source.rows is None else tensor[source.rows[0] : source.rows[1]]
                    tensor = torch.cat(tensor.chunk(2)[::-1]) if source.swap_halves else tensor
                    self._put(name, tensor.to(device))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """The network as it was loaded."""
        while self._undo:
            self._undo.pop()()

    def _put(self, name: str, tensor: Tensor) -> None:
        module, leaf = _place(self._network, name)
        if isinstance(module, PackedLinear) and leaf == "weight":
            self._undo.append(partial(setattr, module, "changed", module.changed))
            module.changed = tensor
        else:
            parameter = getattr(module, leaf)
            self._undo.append(partial(setattr, parameter, "data", parameter.data))
            parameter.data = tensor


def _place(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, leaf = name.rpartition(".")
    return network.get_submodule(module), leaf


def _all_weights(network: nn.Module) -> list[str]:
    """Parameters, and the weights of packed layers, which are none."""
    packed = [f"{name}.weight" for name, module in network.named_modules() if isinstance(module, PackedLinear)]
    return [*(name for name, _ in network.named_parameters()), *packed]
