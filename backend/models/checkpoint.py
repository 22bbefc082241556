"""Checkpoint files: memory-mapped, and complete or refused.

Tensors come as views of the file's pages: ranks of one host share them, and a tensor costs memory of its own only when its dtype is
changed, it is stored quantised, or it goes to another device. (Hazard: a file that is overwritten in place while mapped kills its readers;
replace one by renaming.) Messages name tensors, never paths: they cross the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BadCheckpoint
from ..formats.entries import Entry
from ..formats.read import read_header
from .host_share import KINDS, shared_tensors
from .packed import Packed
from .weights import ConvertedWeights, Weights, open_weights

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "model.", "transformer.", "net.", "")
"""What files put before the names of the diffusion model, the longest first; all-in-one files keep other models beside it."""

_NAMED = 8
"""How many tensors an error names before it only counts them."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one parameter of a network comes from."""

    name: str
    """The tensor in the file."""
    rows: tuple[int, int] | None = None
    """The part of its dimension 0 that is meant; ``None`` is all of it. A part is a view."""
    swap_halves: bool = False
    """Whether the two halves of dimension 0 change places (a copy)."""


class Checkpoint:
    """An open file, seen through one prefix: names are those of the diffusion model."""

    def __init__(self, weights: Weights, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
        self._weights = weights
        self._entries = entries
        self.metadata = metadata
        """What the file says beside its tensors. Anybody may have written it: check what is used."""

    @property
    def names(self) -> Iterable[str]:
        """Every tensor's name, without the prefix."""
        return self._entries.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape as the network sees it, without reading it."""
        return self._entries[name].shape

    def stored_bytes(self, name: str) -> int:
        """What a tensor takes in the file."""
        return self._entries[name].stored_bytes

    def is_packed(self, name: str) -> bool:
        """Whether the file stores a tensor quantised; not one that it lacks."""
        return name in self._entries and self._entries[name].is_packed

    def load(self, name: str, rows: tuple[int, int] | None, dtype: torch.dtype) -> Tensor:
        """A tensor, or some rows of it, on the CPU: a view of the mapped file where nothing has to be computed."""
        return self._weights.load(self._entries[name], rows, dtype)

    def load_copy(self, name: str) -> Tensor:
        """A tensor as float32, in memory of its own."""
        tensor = self.load(name, None, torch.float32)
        return tensor.clone() if self._entries[name].kind == "F32" else tensor

    def packed(self, name: str) -> Packed | None:
        """A matrix as the file stores it; None where it is stored as plain numbers."""
        return self._weights.packed(self._entries[name])

    def under(self, prefix: str) -> Checkpoint:
        """The tensors whose names begin with ``prefix``, which is taken off."""
        return Checkpoint(
            self._weights,
            {name[len(prefix) :]: entry for name, entry in self._entries.items() if name.startswith(prefix)},
            self.metadata,
        )

    def shared_in(self, dtype: torch.dtype, path: Path, progress: Callable[[float], None]) -> Checkpoint:
        """The same, whose plain numbers of another dtype the ranks of this host convert once, into the file ``path``."""
        shapes = {
            entry.name: entry.shape
            for entry in self._entries.values()
            if entry.kind in KINDS and KINDS[entry.kind] != dtype
        }
        if not shapes:
            return self
        entries = {entry.name: entry for entry in self._entries.values()}
        source = self._weights.mapped_again()
        converted = shared_tensors(path, shapes, dtype, lambda name: source.load(entries[name], None, dtype), progress)
        return Checkpoint(ConvertedWeights(self._weights, converted.tensors), self._entries, self.metadata)

    def without(self, names: Collection[str]) -> Checkpoint:
        """The same tensors but for some that may be there or not."""
        kept = {name: entry for name, entry in self._entries.items() if name not in names}
        return Checkpoint(self._weights, kept, self.metadata)


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a checkpoint. Raises :class:`BadCheckpoint` for formats that are not read (by name or content) and for damaged files."""
    header = read_header(path)
    return Checkpoint(open_weights(path), {entry.name: entry for entry in header.entries}, header.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """A network's weights."""

    state: dict[str, Tensor]
    """Parameter -> numbers in the compute dtype, on the device."""
    packed: dict[str, Packed]
    """Linear layer -> its weight as the file stores it."""


def assemble(
    checkpoint: Checkpoint,
    wanted: Mapping[str, Tensor],
    source_of: Callable[[str], Source],
    *,
    linears: Collection[str] = (),
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float], None],
) -> Assembled:
    """The weights of a network whose parameters are ``wanted`` (meta tensors will do), from the tensors of a file.

    Weights of ``linears`` (names of linear layers) that the file stores quantised stay as they are stored. Check with
    :func:`check_complete` first.
    """
    sources = {name: source_of(name) for name in wanted}
    assembled = Assembled(state={}, packed={})
    wholes: dict[str, Packed] = {}
    total = sum(parameter.numel() for parameter in wanted.values())
    done = 0
    for name, source in sources.items():
        layer = name.removesuffix(".weight")
        if stays_packed(checkpoint, name, source, linears) and (packed := checkpoint.packed(source.name)) is not None:
            if source.name not in wholes:  # parts of a fused matrix share what was moved
                wholes[source.name] = packed.to(device)
            whole = wholes[source.name]
            assembled.packed[layer] = whole if source.rows is None else whole.cut(source.rows)
        else:
            assembled.state[name] = _read(checkpoint, source, dtype, device)
        done += wanted[name].numel()
        progress(done / total)
    return assembled


def stays_packed(checkpoint: Checkpoint, parameter: str, source: Source, linears: Collection[str]) -> bool:
    """Whether a parameter of a network stays as the file stores it."""
    return parameter.removesuffix(".weight") in linears and not source.swap_halves and checkpoint.is_packed(source.name)


def _read(checkpoint: Checkpoint, source: Source, dtype: torch.dtype, device: torch.device) -> Tensor:
    tensor = checkpoint.load(source.name, source.rows, dtype).to(device)
    return torch.cat(tensor.chunk(2)[::-1]) if source.swap_halves else tensor


def check_complete(checkpoint: Checkpoint, wanted: Mapping[str, Tensor], source_of: Callable[[str], Source]) -> None:
    """Raises :class:`BadCheckpoint` that names tensors which are missing, of another shape, or not used by the network."""
    sources = {name: source_of(name) for name in wanted}
    used = {source.name for source in sources.values()}
    if missing := sorted(used - set(checkpoint.names)):
        raise BadCheckpoint(f"Download the checkpoint again, or choose a complete one: {_some(missing)} missing.")
    if unexpected := sorted(set(checkpoint.names) - used):
        raise BadCheckpoint(
            f"Choose another checkpoint: {_some(unexpected)} not part of the network that its other tensors describe."
        )
    misshapen = [_shape_problem(checkpoint, sources[name], parameter) for name, parameter in wanted.items()]
    if problems := [problem for problem in misshapen if problem]:
        raise BadCheckpoint(f"Choose another checkpoint: the shapes do not fit together, {_some(problems)}.")
    covered: dict[str, int] = {}
    for name, source in sources.items():
        covered[source.name] = covered.get(source.name, 0) + wanted[name].shape[0]
    if uncovered := sorted(name for name, rows in covered.items() if checkpoint.shape(name)[0] != rows):
        raise BadCheckpoint(f"Choose another checkpoint: {_some(uncovered)} of more rows than the network uses.")


def _shape_problem(checkpoint: Checkpoint, source: Source, parameter: Tensor) -> str | None:
    shape = found = checkpoint.shape(source.name)
    if source.rows is not None and shape:
        first, last = source.rows
        found = (max(0, min(shape[0], last) - first), *shape[1:])
    return None if found == tuple(parameter.shape) else f"{source.name} {list(shape)}"


def _some(names: list[str]) -> str:
    listed = ", ".join(names[:_NAMED])
    return f"{len(names)} tensor(s), {listed}{' and others' if len(names) > _NAMED else ''},"
