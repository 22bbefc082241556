"""A network with some of its weights changed, and back again: parameters keep their identity, so that nothing is compiled or loaded anew."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..checkpoint import Checkpoint, Source
from ..family import Family
from ..keys import respelled
from ..packed import PackedLinear
from .adapters import Patch, patched


def merged_weights(
    original: Callable[[str], Tensor], patches: Iterable[Patch], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The changed weights by their original names: computed in float32, then rounded to ``dtype``.

    ``original`` gives the weight of an original name as float32.

    Raises:
        BadCheckpoint: an adapter does not fit its weight.
    """
    by_weight: dict[str, list[Patch]] = {}
    for patch in patches:
        by_weight.setdefault(patch.weight, []).append(patch)
    return {name: patched(original(name), of_weight).to(dtype) for name, of_weight in by_weight.items()}


def original_weights(family: Family[Any], geometry: Any, checkpoint: Checkpoint) -> Callable[[str], Tensor]:
    """Reads a weight by its original name, float32, from a file in either naming: diffusers' keeps apart what the original fuses."""
    if family.is_original(checkpoint) or not family.original_marks:
        return lambda name: checkpoint.load(respelled(checkpoint, name, family.spellings), None, torch.float32)
    parts: dict[str, list[tuple[int, str, bool]]] = {}
    for parameter in family.empty_network(geometry).state_dict():
        source = family.key_map(geometry).source(parameter)
        parts.setdefault(source.name, []).append((source.rows[0] if source.rows else 0, parameter, source.swap_halves))

    def fused(name: str) -> Tensor:
        pieces = []
        for _, parameter, swapped in sorted(parts[name]):
            piece = checkpoint.load(parameter, None, torch.float32)
            pieces.append(torch.cat(piece.chunk(2)[::-1]) if swapped else piece)
        return torch.cat(pieces)

    return fused


def shared_weights(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` gives, once per host: the first rank that comes writes it to ``path`` (a file in memory), all of them map it."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            temporary = path.with_suffix(".part")
            save_file({name: tensor.contiguous() for name, tensor in make().items()}, temporary)
            temporary.replace(path)
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


class Variant:
    """The changes that are in a network now."""

    def __init__(self, network: nn.Module, find: Callable[[str], Source]) -> None:
        """``find`` gives the original name and rows of a parameter of the network as it was loaded."""
        self._network = network
        self._parameters = {name: find(name) for name in _all_weights(network)}
        self._before: dict[str, Any] = {}

    def apply(self, weights: Mapping[str, Tensor], device: torch.device) -> None:
        """Put changed weights (by original names) in; earlier changes are taken out first."""
        self.remove()
        for name, source in self._parameters.items():
            if source.name in weights:
                tensor = weights[source.name]
                tensor = tensor if source.rows is None else tensor[source.rows[0] : source.rows[1]]
                tensor = torch.cat(tensor.chunk(2)[::-1]) if source.swap_halves else tensor
                self._put(name, tensor.to(device))

    def remove(self) -> None:
        """The network as it was loaded."""
        while self._before:
            name, before = self._before.popitem()
            module, leaf = _place(self._network, name)
            if isinstance(module, PackedLinear):
                module.changed = before
            else:
                getattr(module, leaf).data = before

    def _put(self, name: str, tensor: Tensor) -> None:
        module, leaf = _place(self._network, name)
        if isinstance(module, PackedLinear) and leaf == "weight":
            self._before[name], module.changed = module.changed, tensor
        else:
            parameter = getattr(module, leaf)
            self._before[name], parameter.data = parameter.data, tensor


def _place(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, leaf = name.rpartition(".")
    return network.get_submodule(module), leaf


def _all_weights(network: nn.Module) -> list[str]:
    """Parameters, and the weights of packed layers, which are none."""
    packed = [f"{name}.weight" for name, module in network.named_modules() if isinstance(module, PackedLinear)]
    return [*(name for name, _ in network.named_parameters()), *packed]
