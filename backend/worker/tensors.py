"""Wire tensors and torch tensors over the same memory, and a job's tensors shared by the group with a single broadcast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from ..errors import RemoteProtocolError
from ..wire.dtypes import TORCH_NAMES, WireDtype
from ..wire.tensors import TensorSpec, WireTensor

DTYPES: Final[dict[WireDtype, torch.dtype]] = {name: getattr(torch, dtype) for name, dtype in TORCH_NAMES.items()}
"""Name on the wire -> torch dtype."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

ALIGNMENT_BYTES = 64
"""Where a tensor may begin within the packed buffer: a cache line, and a multiple of every element size."""


def to_wire(tensor: Tensor) -> WireTensor:
    """``tensor`` as a wire tensor. A contiguous tensor on the CPU keeps its memory; any other is copied there first."""
    dense = tensor.detach().cpu().contiguous()
    # Bytes, because numpy (whose buffer this is) knows neither bfloat16 nor float8.
    data = dense.reshape(-1).view(torch.uint8).numpy().data
    return WireTensor(dtype=_NAMES[dense.dtype], shape=tuple(dense.shape), data=data)


def to_torch(tensor: WireTensor) -> Tensor:
    """A wire tensor as a torch tensor on the CPU over the frame's own memory."""
    if 0 in tensor.shape:
        return torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype])
    return torch.frombuffer(tensor.data, dtype=DTYPES[tensor.dtype]).reshape(tensor.shape)


class Group(Protocol):
    """What sharing needs of the worker group."""

    rank: int

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""

    def broadcast(self, tensor: Tensor, src: int = 0) -> None:
        """Overwrite ``tensor`` with that of rank ``src``."""


def share(group: Group, specs: Sequence[TensorSpec], frames: Mapping[str, WireTensor]) -> dict[str, Tensor]:
    """A job's tensors on every rank's device. Collective: one broadcast of one buffer, because each broadcast costs a round trip.

    ``specs`` is the same on every rank; ``frames`` holds the bytes on rank 0 and nothing elsewhere.

    Raises:
        RemoteProtocolError: rank 0 was not sent all of them.
    """
    if group.rank == 0 and frames.keys() != {spec.name for spec in specs}:
        raise RemoteProtocolError("a Prepare or a Repeat came without some of the tensors that were announced")
    offsets, size_bytes = _layout(specs)
    if not size_bytes:
        return {spec.name: torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device=group.device) for spec in specs}
    if group.rank == 0:
        packed = _packed(specs, offsets, size_bytes, frames, group.device)
    else:
        packed = torch.empty(size_bytes, dtype=torch.uint8, device=group.device)
    group.broadcast(packed)
    return {
        spec.name: packed[offset : offset + spec.size_bytes].view(DTYPES[spec.dtype]).view(spec.shape)
        for spec, offset in zip(specs, offsets, strict=True)
    }


def _packed(
    specs: Sequence[TensorSpec],
    offsets: Sequence[int],
    size_bytes: int,
    frames: Mapping[str, WireTensor],
    device: torch.device,
) -> Tensor:
    """The frames in one buffer on the device."""
    packed = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for spec, offset in zip(specs, offsets, strict=True):
        if spec.size_bytes:
            packed[offset : offset + spec.size_bytes] = torch.frombuffer(frames[spec.name].data, dtype=torch.uint8)
    return packed.to(device)


def _layout(specs: Sequence[TensorSpec]) -> tuple[list[int], int]:
    """Where each tensor begins in the packed buffer, and the buffer's size."""
    offsets, end = [], 0
    for spec in specs:
        offsets.append(end)
        end += -(-spec.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return offsets, end
