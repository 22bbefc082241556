"""Checkpoint files: safetensors only, memory-mapped, and complete or refused.

Tensors come as views of the file's pages: ranks of one host share them, and a tensor costs memory of its own only when its dtype is
changed or it goes to another device. (Hazard: a file that is overwritten in place while mapped kills its readers; replace one by renaming.)
Messages name tensors, never paths: they cross the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BadCheckpoint

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "transformer.", "net.", "")
"""What files put before the names of the diffusion model, the longest first; all-in-one files keep other models beside it."""

_SCALED_MARKS = (
    ".comfy_quant",
    ".weight_scale",
    ".scale_weight",
    ".scale_input",
    "scaled_fp8",
    ".input_scale",
    ".weight_scale_2",
)
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

    def __init__(self, file: Any, names: Mapping[str, str]) -> None:
        self._file = file
        self._names = names

    @property
    def names(self) -> Iterable[str]:
        """Every tensor's name, without the prefix."""
        return self._names.keys()

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says beside its tensors. Anybody may have written it: check what is used."""
        return dict(self._file.metadata() or {})

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._file.get_slice(self._names[name]).get_shape())

    def tensor(self, name: str) -> Tensor:
        """A tensor in the file's own dtype, as a view of the mapped file."""
        tensor: Tensor = self._file.get_tensor(self._names[name])
        return tensor

    def under(self, prefix: str) -> Checkpoint:
        """The tensors whose names begin with ``prefix``, which is taken off."""
        return Checkpoint(
            self._file, {name[len(prefix) :]: full for name, full in self._names.items() if name.startswith(prefix)}
        )


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a safetensors file. Raises :class:`BadCheckpoint` for any other format (by name or content) and for damaged files."""
    if path.is_dir():
        raise BadCheckpoint("Choose a single .safetensors file: a folder cannot be loaded.")
    if path.suffix.lower() not in (".safetensors", ".sft"):
        raise BadCheckpoint(
            f"Convert the checkpoint to .safetensors: {path.suffix[:16] or 'a file without an ending'} is not read."
        )
    try:
        file: Any = safe_open(path, framework="pt", device="cpu")
        names: list[str] = file.keys()
        return Checkpoint(file, {name: name for name in names})
    except FileNotFoundError as error:
        raise BadCheckpoint("Put the checkpoint back or choose another one: the file is gone.") from error
    except OSError as error:
        raise BadCheckpoint(
            f"Check the checkpoint's permissions and disk: it cannot be opened ({error.strerror})."
        ) from error
    except SafetensorError as error:
        raise BadCheckpoint(f"Download the checkpoint again: it is no whole safetensors file ({error}).") from error


def assemble(
    checkpoint: Checkpoint,
    wanted: Mapping[str, Tensor],
    source_of: Callable[[str], Source],
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float], None],
) -> dict[str, Tensor]:
    """The state dict of a network whose parameters are ``wanted`` (meta tensors will do), from the tensors of a file.

    Raises :class:`BadCheckpoint` that names tensors which are missing, of another shape, or not used by the network.
    """
    sources = {name: source_of(name) for name in wanted}
    _check_complete(checkpoint, wanted, sources)
    state: dict[str, Tensor] = {}
    total_bytes = sum(parameter.numel() for parameter in wanted.values()) * dtype.itemsize
    done_bytes = 0
    for name, source in sources.items():
        state[name] = _read(checkpoint, source, dtype, device)
        done_bytes += state[name].nbytes
        progress(done_bytes / total_bytes)
    return state


def _read(checkpoint: Checkpoint, source: Source, dtype: torch.dtype, device: torch.device) -> Tensor:
    tensor = checkpoint.tensor(source.name)
    if source.rows is not None:
        tensor = tensor[source.rows[0] : source.rows[1]]
    tensor = tensor.to(device=device, dtype=dtype)
    return torch.cat(tensor.chunk(2)[::-1]) if source.swap_halves else tensor


def _check_complete(checkpoint: Checkpoint, wanted: Mapping[str, Tensor], sources: Mapping[str, Source]) -> None:
    used = {source.name for source in sources.values()}
    if scaled := sorted(name for name in checkpoint.names if name.endswith(_SCALED_MARKS)):
        raise BadCheckpoint(
            f"Choose a checkpoint without scaled or quantised weights: this one has {_some(scaled)}, which are not read yet."
        )
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
