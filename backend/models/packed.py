"""Linear layers whose weights stay as the file stores them and become numbers for the time of a call.

A quantised checkpoint then takes its own size in memory and not that of its numbers. What is computed is the same: packed values are views of the
mapped file, and the compute dtype is the model's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

Rows = tuple[int, int]


class Packed(nn.Module, ABC):
    """One stored weight ``[out, in]``, or a run of its rows. Its tensors are buffers, so that they move with the module."""

    @abstractmethod
    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The weight as numbers."""

    @abstractmethod
    def cut(self, rows: Rows) -> Packed:
        """Some of its rows, over the same memory."""

    def stored(self) -> list[Tensor]:
        """Every tensor that it keeps."""
        return list(self.buffers(recurse=False))


class PackedFp8(Packed):
    """``packed * scale``; the scale is one number, one per row ``[out, 1]``, or missing."""

    packed: Tensor
    scale: Tensor | None

    def __init__(self, packed: Tensor, scale: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def unpack(self, dtype: torch.dtype) -> Tensor:
        return self.packed.to(dtype) if self.scale is None else (self.packed.float() * self.scale).to(dtype)

    def cut(self, rows: Rows) -> Packed:
        scale = self.scale
        return PackedFp8(
            self.packed[slice(*rows)], scale if scale is None or scale.numel() == 1 else scale[slice(*rows)]
        )


class PackedGguf(Packed):
    """Blocks of one of GGUF's types, uint8 ``[out, bytes of a row]``."""

    packed: Tensor

    def __init__(self, packed: Tensor, type_name: str) -> None:
        super().__init__()
        self.register_buffer("packed", packed, persistent=False)
        self._type_name = type_name

    def unpack(self, dtype: torch.dtype) -> Tensor:
        from diffusers.quantizers.gguf.utils import dequantize_functions
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        kind = GGMLQuantizationType[self._type_name]
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
        blocks = self.packed.reshape(-1, block_bytes)
        numbers: Tensor = dequantize_functions[kind](  # type: ignore[no-untyped-call]
            blocks, block_size, block_bytes, dtype=torch.float32
        )
        return numbers.reshape(len(self.packed), -1).to(dtype)

    def cut(self, rows: Rows) -> Packed:
        return PackedGguf(self.packed[slice(*rows)], self._type_name)


class PackedLayout(Packed):
    """A layout that comfy-kitchen unpacks."""

    packed: Tensor

    def __init__(self, packed: Tensor, params: Any, layout: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("packed", packed, persistent=False)
        self._params, self._layout, self._shape = params, layout, shape

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayout:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._params = self._params.to_device(self.packed.device)
        return self

    def stored(self) -> list[Tensor]:
        params = [getattr(self._params, field.name) for field in fields(self._params)]
        return [*super().stored(), *(value for value in params if isinstance(value, Tensor))]

    def unpack(self, dtype: torch.dtype) -> Tensor:
        unpacked: Tensor = self._layout.dequantize(self.packed, self._params)
        return unpacked[tuple(slice(size) for size in self._shape)].to(dtype)

    def cut(self, rows: Rows) -> Packed:
        return PackedRows(self, rows)


class PackedRows(Packed):
    """A run of rows of a layout whose block scales are stored in tiles of many rows: it is cut out of the whole, which its parts share."""

    def __init__(self, whole: Packed, rows: Rows) -> None:
        super().__init__()
        self.whole = whole
        self._rows = rows

    def unpack(self, dtype: torch.dtype) -> Tensor:
        return self.whole.unpack(dtype)[slice(*self._rows)]

    def cut(self, rows: Rows) -> Packed:
        first = self._rows[0]
        return PackedRows(self.whole, (first + rows[0], first + rows[1]))


class PackedLinear(nn.Module):
    """``x @ weight.T + bias`` with a packed weight."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, weight: Packed) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_store = weight
        self.bias = linear.bias
        self.changed: Tensor | None = None
        """Another weight in its place, as numbers: the packed one with a LoRA."""

    @property
    def weight(self) -> Tensor:
        """The weight as numbers: some networks ask for its dtype or device."""
        if self.changed is not None:
            return self.changed
        return self.weight_store.unpack(torch.float32 if self.bias is None else self.bias.dtype)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_store.unpack(x.dtype) if self.changed is None else self.changed
        return nn.functional.linear(x, weight, self.bias)


def pack_linears(network: nn.Module, weights: Mapping[str, Packed]) -> None:
    """Put packed weights (by the names of the linear layers) into a network."""
    for name, weight in weights.items():
        parent_name, _, leaf = name.rpartition(".")
        parent = network.get_submodule(parent_name)
        setattr(parent, leaf, PackedLinear(network.get_submodule(name), weight))  # type: ignore[arg-type]


def packed_bytes(network: nn.Module) -> int:
    """What the packed weights of a network take; parts of one fused tensor that share it count once."""
    stored = [tensor for module in network.modules() if isinstance(module, Packed) for tensor in module.stored()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in stored}.values())
