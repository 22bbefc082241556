"""Weights as numbers: plain tensors as views of the mapped file, quantised ones computed from their packed values and scales."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BadCheckpoint
from ..formats.entries import Entry
from ..formats.gguf_header import SUFFIX as GGUF
from ..formats.gguf_header import read_gguf
from ..formats.quantised import FORMATS, FP8
from ..formats.read import raw_files
from .host_share import KINDS
from .packed import Packed, PackedFp8, PackedGguf, PackedLayout, Rows

_LAYOUTS: Final = {
    "int8_tensorwise": "TensorWiseINT8Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
}
"""Format -> the layout of comfy-kitchen that knows it."""
_SCALE_DTYPES: Final = {"mxfp8": torch.float8_e8m0fnu, "nvfp4": torch.float8_e4m3fn}
"""Block scales that files may keep as bytes."""


class Weights(Protocol):
    """The numbers behind a checkpoint's entries."""

    def load(self, entry: Entry, rows: Rows | None, dtype: torch.dtype) -> Tensor:
        """A weight (or some of its rows) on the CPU in ``dtype``: a view of the file's pages where nothing has to be computed.

        Raises:
            BadCheckpoint: the file cannot be read.
        """

    def packed(self, entry: Entry) -> Packed | None:
        """A matrix as the file stores it, as views of its pages; None where it is stored as plain numbers of at least 16 bits."""

    def mapped_again(self) -> Weights:
        """The same in a mapping of its own: the pages that are read through it leave the process with it."""


def open_weights(path: Path) -> Weights:
    """Map a checkpoint's file or files. Raises ``BadCheckpoint``."""
    return GgufWeights(path) if path.suffix.lower() == GGUF else SafetensorsWeights(raw_files(path))


class SafetensorsWeights:
    """One or several mapped safetensors files."""

    def __init__(self, holder: Mapping[str, Path]) -> None:
        self._holder = holder
        self._files: dict[Path, Any] = {path: _mapped(path) for path in dict.fromkeys(holder.values())}

    def load(self, entry: Entry, rows: Rows | None, dtype: torch.dtype) -> Tensor:
        packed = self.packed(entry)
        if packed is None:
            return _cut(self._raw(entry.name), rows).to(dtype)
        return (packed if rows is None else packed.cut(rows)).unpack(dtype)

    def packed(self, entry: Entry) -> Packed | None:
        if entry.kind in FP8:
            return PackedFp8(self._raw(entry.name), None)
        if entry.kind in FP8.values():
            return self._scaled_fp8(entry)
        return self._layout(entry) if entry.kind in FORMATS else None

    def mapped_again(self) -> Weights:
        return SafetensorsWeights(self._holder)

    def _raw(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self._holder[name]].get_tensor(name)
        return tensor

    def _scaled_fp8(self, entry: Entry) -> PackedFp8:
        """One scale for all values or one per row."""
        scale = self._raw(entry.scales["weight_scale"]).float()
        if scale.numel() not in (1, entry.shape[0]):
            raise BadCheckpoint(
                f"Choose a checkpoint in another format: {entry.name} has {scale.numel()} scales for {entry.shape[0]} rows."
            )
        per_row = (entry.shape[0], *(1,) * (len(entry.shape) - 1))
        return PackedFp8(self._raw(entry.name), scale.reshape(() if scale.numel() == 1 else per_row))

    def _layout(self, entry: Entry) -> PackedLayout:
        from comfy_kitchen.tensor import get_layout_class

        scales = {name: self._raw(stored) for name, stored in entry.scales.items()}
        scale = scales["weight_scale"]
        if entry.kind in _SCALE_DTYPES:
            scale = scale.view(_SCALE_DTYPES[entry.kind])
        layout = get_layout_class(_LAYOUTS[entry.kind])
        shared = {"orig_dtype": torch.float32, "orig_shape": entry.shape, **entry.settings}
        if entry.kind == "nvfp4":
            params = layout.Params(scale=scales["weight_scale_2"], block_scale=scale, **shared)
        else:
            params = layout.Params(scale=scale, **shared)
        return PackedLayout(self._raw(entry.name), params, layout, entry.shape)


class GgufWeights:
    """A mapped GGUF file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begins = {tensor.entry.name: tensor.begin for tensor in read_gguf(path).tensors}
        # Copy on write, so that torch may see the pages as tensors; nobody writes.
        self._bytes = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c"))

    def load(self, entry: Entry, rows: Rows | None, dtype: torch.dtype) -> Tensor:
        packed = self.packed(entry)
        if packed is not None:
            return (packed if rows is None else packed.cut(rows)).unpack(dtype).reshape(_shape(entry, rows))
        return _cut(self._raw(entry).view(KINDS[entry.kind]).reshape(entry.shape), rows).to(dtype)

    def packed(self, entry: Entry) -> Packed | None:
        if entry.kind in KINDS:
            return None
        return PackedGguf(self._raw(entry).reshape(entry.shape[0], -1), entry.kind)

    def mapped_again(self) -> Weights:
        return GgufWeights(self._path)

    def _raw(self, entry: Entry) -> Tensor:
        begin = self._begins[entry.name]
        return self._bytes[begin : begin + entry.stored_bytes]


class ConvertedWeights:
    """Weights some of which are at hand in the dtype that is asked for."""

    def __init__(self, weights: Weights, converted: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._converted = converted

    def load(self, entry: Entry, rows: Rows | None, dtype: torch.dtype) -> Tensor:
        found = self._converted.get(entry.name)
        return self._weights.load(entry, rows, dtype) if found is None else _cut(found, rows).to(dtype)

    def packed(self, entry: Entry) -> Packed | None:
        return self._weights.packed(entry)

    def mapped_again(self) -> Weights:
        return ConvertedWeights(self._weights.mapped_again(), self._converted)


def _shape(entry: Entry, rows: Rows | None) -> tuple[int, ...]:
    return entry.shape if rows is None else (rows[1] - rows[0], *entry.shape[1:])


def _cut(tensor: Tensor, rows: Rows | None) -> Tensor:
    return tensor if rows is None else tensor[rows[0] : rows[1]]


def _mapped(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise BadCheckpoint("Put the checkpoint back or choose another one: the file is gone.") from error
    except OSError as error:
        raise BadCheckpoint(
            f"Check the checkpoint's permissions and disk: it cannot be opened ({error.strerror})."
        ) from error
    except SafetensorError as error:
        raise BadCheckpoint(f"Download the checkpoint again: it is no whole safetensors file ({error}).") from error
