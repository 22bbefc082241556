"""torch tensors to wire tensors and back. One copy each way at most; dtypes are kept."""

from __future__ import annotations

from typing import Final

import torch

from ..backend.errors import LocalProtocolError, RemoteProtocolError
from ..backend.wire.dtypes import COMPUTE_DTYPES, TORCH_NAMES, ComputeDtype, WireDtype
from ..backend.wire.tensors import WireTensor

_FROM_WIRE: Final[dict[str, torch.dtype]] = {name: getattr(torch, dtype) for name, dtype in TORCH_NAMES.items()}
_TO_WIRE: Final[dict[torch.dtype, WireDtype]] = {getattr(torch, dtype): name for name, dtype in TORCH_NAMES.items()}
_COMPUTE: Final[dict[torch.dtype, ComputeDtype]] = {_FROM_WIRE[name]: name for name in COMPUTE_DTYPES}


def compute_dtype(dtype: torch.dtype) -> ComputeDtype:
    """The wire's name of a dtype that a model can compute in.

    Raises:
        LocalProtocolError: no model computes in it.
    """
    if dtype not in _COMPUTE:
        raise LocalProtocolError(f"no model of ours computes in {dtype}; {', '.join(_COMPUTE.values())} are possible")
    return _COMPUTE[dtype]


def torch_dtype(name: str) -> torch.dtype | None:
    """The torch dtype of a wire (and safetensors) name, or None when torch has none."""
    return _FROM_WIRE.get(name)


def to_wire(tensor: torch.Tensor) -> WireTensor:
    """A tensor of any device as dense bytes. A contiguous CPU tensor is not copied: do not change it until the answer came.

    Raises:
        LocalProtocolError: the wire has no name for its dtype.
    """
    if tensor.dtype not in _TO_WIRE:
        raise LocalProtocolError(f"a tensor of {tensor.dtype} cannot cross the wire")
    dense = tensor.detach().to("cpu").contiguous()
    # numpy knows neither bfloat16 nor float8, so the bytes are seen as uint8 (a 0-dimensional tensor cannot be: flatten first).
    data = dense.reshape(-1).view(torch.uint8).numpy().data
    return WireTensor(dtype=_TO_WIRE[tensor.dtype], shape=tuple(tensor.shape), data=data)


def from_wire(tensor: WireTensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """A tensor of its own memory (the frame may be freed) on `device`.

    Raises:
        RemoteProtocolError: its bytes do not fill its shape.
    """
    dtype = _FROM_WIRE[tensor.dtype]
    data = bytearray(tensor.data)  # torch wants writable memory, and the frame is not ours to keep
    made = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    try:
        return made.reshape(tensor.shape).to(device)
    except RuntimeError as error:
        raise RemoteProtocolError(f"{len(data)} bytes do not make a tensor of shape {tensor.shape}") from error
