"""Weights as numbers: plain tensors as views of the mapped file, quantised ones computed from their packed values and scales."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BadCheckpoint
from ..formats.entries import Entry
from ..formats.gguf_header import SUFFIX as GGUF
from ..formats.gguf_header import open_gguf
from ..formats.quantised import FORMATS
from ..formats.read import raw_files

Rows = tuple[int, int]

_LAYOUTS: Final = {
    "float8_e4m3fn": "TensorCoreFP8Layout",
    "float8_e5m2": "TensorCoreFP8Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
}
"""Format -> the layout of comfy-kitchen that knows it."""
_SCALE_DTYPES: Final = {"mxfp8": torch.float8_e8m0fnu, "nvfp4": torch.float8_e4m3fn}
"""Block scales that files may keep as bytes."""
_FP8: Final = ("float8_e4m3fn", "float8_e5m2")
_SAFETENSORS_KIND: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Weights(Protocol):
    """The numbers behind a checkpoint's entries."""

    def load(self, entry: Entry, rows: Rows | None, dtype: torch.dtype) -> Tensor:
        """A weight (or some of its rows) on the CPU in ``dtype``: a view of the file's pages where nothing has to be computed.

        Raises:
            BadCheckpoint: the file cannot be read.
        """


def open_weights(path: Path) -> Weights:
    """Map a checkpoint's file or files. Raises ``BadCheckpoint``."""
    return GgufWeights(path) if path.suffix.lower() == GGUF else SafetensorsWeights(raw_files(path))


class SafetensorsWeights:
    """One or several mapped safetensors files."""

    def __init__(self, holder: Mapping[str, Path]) -> None:
        self._holder = holder
        self._files: dict[Path, Any] = {path: _mapped(path) for path in dict.fromkeys(holder.values())}
        self._last: tuple[str, torch.dtype, Tensor] | None = None
        """The weight that was computed last: a fused one is asked for part by part."""

    def load(self, entry: Entry, rows: Rows | None, dtype: torch.dtype) -> Tensor:
        if entry.kind not in FORMATS:
            return _cut(self._raw(entry.name), rows).to(dtype)
        if entry.kind in _FP8:
            return self._scaled_fp8(entry, rows, dtype)
        if self._last is None or self._last[:2] != (entry.name, dtype):
            self._last = (entry.name, dtype, self._unpacked(entry, dtype))
        return _cut(self._last[2], rows)

    def _raw(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self._holder[name]].get_tensor(name)
        return tensor

    def _scaled_fp8(self, entry: Entry, rows: Rows | None, dtype: torch.dtype) -> Tensor:
        """``packed * scale``, one scale for all or one per row."""
        scale = self._raw(entry.scales["weight_scale"]).float()
        if scale.numel() > 1:
            scale = _cut(scale.reshape(entry.shape[0], *(1,) * (len(entry.shape) - 1)), rows)
        return (_cut(self._raw(entry.name), rows).float() * scale).to(dtype)

    def _unpacked(self, entry: Entry, dtype: torch.dtype) -> Tensor:
        from comfy_kitchen.tensor import get_layout_class

        packed = self._raw(entry.name)
        scales = {name: self._raw(stored) for name, stored in entry.scales.items()}
        scale = scales["weight_scale"]
        if entry.kind in _SCALE_DTYPES:
            scale = scale.view(_SCALE_DTYPES[entry.kind])
        layout = get_layout_class(_LAYOUTS[entry.kind])
        if entry.kind == "nvfp4":
            params = layout.Params(
                scale=scales["weight_scale_2"], block_scale=scale, orig_dtype=torch.float32, orig_shape=entry.shape
            )
        else:
            params = layout.Params(scale=scale, orig_dtype=torch.float32, orig_shape=entry.shape, **entry.settings)
        unpacked: Tensor = layout.dequantize(packed, params)
        return unpacked[tuple(slice(size) for size in entry.shape)].to(dtype)


class GgufWeights:
    """A mapped GGUF file."""

    def __init__(self, path: Path) -> None:
        self._tensors = {tensor.name: tensor for tensor in open_gguf(path).tensors}

    def load(self, entry: Entry, rows: Rows | None, dtype: torch.dtype) -> Tensor:
        stored = self._tensors[entry.name]
        data = stored.data if rows is None else stored.data[rows[0] : rows[1]]
        if entry.kind in _SAFETENSORS_KIND:
            plain = torch.from_numpy(data).view(_SAFETENSORS_KIND[entry.kind])
            return plain.reshape(_shape(entry, rows)).to(dtype)
        from gguf import quants

        return torch.from_numpy(quants.dequantize(data, stored.tensor_type)).reshape(_shape(entry, rows)).to(dtype)


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
