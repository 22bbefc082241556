"""Where each parameter of a network lies in a checkpoint: tables from diffusers' names to the file's, read in both directions.

Files fuse what diffusers keeps apart (query, key and value as one matrix): a parameter is then a run of rows of a tensor in the file, which is
a view of the mapped pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ..errors import BadCheckpoint
from .checkpoint import Checkpoint, Source


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows ``first`` to ``last`` of a fused tensor, in units of the map's ``unit``."""

    name: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Swapped:
    """A tensor whose halves change places: files give (shift, scale) where diffusers expects (scale, shift)."""

    name: str


Names = Mapping[str, str | Rows | Swapped]
"""A module of diffusers' network (or one whole parameter) -> the same in the file."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A list of like blocks."""

    name: str
    """What the list is called in the file."""
    modules: Names
    """Names within one block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMap:
    """A whole network's names."""

    modules: Names
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    """What a list of blocks is called in diffusers' network -> the list in the file."""
    unit: int = 0
    """Rows that one unit of :class:`Rows` stands for."""

    def source(self, parameter: str) -> Source:
        """Where a parameter of diffusers' network lies. ``KeyError`` for one that the family lacks."""
        found = _look_up(self.modules, parameter)
        if found is not None:
            return self._source("", *found)
        for ours, stack in self.stacks.items():
            if parameter.startswith(f"{ours}."):
                index, _, inner = parameter[len(ours) + 1 :].partition(".")
                found = _look_up(stack.modules, inner)
                if found is not None:
                    return self._source(f"{stack.name}.{index}.", *found)
        raise KeyError(parameter)

    def _source(self, prefix: str, target: str | Rows | Swapped, leaf: str) -> Source:
        name = target if isinstance(target, str) else target.name
        name = f"{prefix}{name}{leaf}"
        if isinstance(target, Rows):
            return Source(name, rows=(target.first * self.unit, target.last * self.unit))
        return Source(name, swap_halves=isinstance(target, Swapped))


def _look_up(names: Names, parameter: str) -> tuple[str | Rows | Swapped, str] | None:
    """The target, and what is to be added to its name."""
    if parameter in names:
        return names[parameter], ""
    module, _, leaf = parameter.rpartition(".")
    return (names[module], f".{leaf}") if module in names else None


def spelled_as_in(
    checkpoint: Checkpoint, find: Callable[[str], Source], spellings: Mapping[str, str]
) -> Callable[[str], Source]:
    """``find``, but where the file lacks a name that ends in a key of ``spellings``, with the value as its end."""

    def spelled(parameter: str) -> Source:
        source = find(parameter)
        return replace(source, name=respelled(checkpoint, source.name, spellings))

    return spelled


def respelled(checkpoint: Checkpoint, name: str, spellings: Mapping[str, str]) -> str:
    """An original name as this file spells it."""
    if name not in checkpoint:
        for usual, other in spellings.items():
            changed = f"{name.removesuffix(usual)}{other}"
            if name.endswith(usual) and changed in checkpoint:
                return changed
    return name


def shape_of(checkpoint: Checkpoint, name: str, dims: int = 2) -> tuple[int, ...]:
    """The shape of a tensor that tells the geometry.

    Raises:
        BadCheckpoint: it is missing, or has another number of dimensions.
    """
    if name not in checkpoint:
        raise BadCheckpoint(f"Download the checkpoint again, or choose a complete one: {name} is missing.")
    found = checkpoint.shape(name)
    if len(found) != dims:
        what = "a matrix" if dims == 2 else f"a tensor of {dims} dimensions"
        raise BadCheckpoint(f"Choose another checkpoint: {name} is not {what} but {list(found)}.")
    return found


def count_blocks(checkpoint: Checkpoint, stack: str) -> int:
    """How many blocks ``stack.0``, ``stack.1``, ... there are, up to the first gap."""
    depth = stack.count(".") + 1
    indices = {name.split(".")[depth] for name in checkpoint.names if name.startswith(f"{stack}.")}
    count = 0
    while str(count) in indices:
        count += 1
    return count
