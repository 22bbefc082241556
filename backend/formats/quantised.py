"""ComfyUI's quantised layouts: which tensors of a safetensors file are one weight.

    layer.weight        packed values
    layer.weight_scale  one number, one per row, or one per block
    layer.comfy_quant   JSON: {"format": "nvfp4", ...}; or the same by layer in the file's metadata (``_quantization_metadata``)

Older files have ``layer.scale_weight`` and a marker ``scaled_fp8`` instead. Scales of *inputs* are for kernels that multiply in low precision; we
compute in the compute dtype, so they are known and not used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..errors import BadCheckpoint
from .entries import Entry, RawTensor

FP8: Final = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""safetensors' dtype -> ComfyUI's name of the same with a scale."""
FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "float8_e4m3fn": ("weight_scale",),
    "float8_e5m2": ("weight_scale",),
    "int8_tensorwise": ("weight_scale",),
    "mxfp8": ("weight_scale",),
    "nvfp4": ("weight_scale", "weight_scale_2"),
}
"""Format -> the scales that it needs."""
_STORED_AS: Final[Mapping[str, tuple[str, ...]]] = {
    # Format -> what safetensors calls the packed values.
    "float8_e4m3fn": ("F8_E4M3",),
    "float8_e5m2": ("F8_E5M2",),
    "int8_tensorwise": ("I8",),
    "mxfp8": ("F8_E4M3",),
    "nvfp4": ("U8",),
}
_BLOCKS: Final = {"mxfp8": 32, "nvfp4": 16}
"""Format -> values that share a scale. Scales lie in tiles of 128 rows and 4 columns, the last ones filled up."""
_TURNED_IN: Final = (16, 64, 256)
"""Sizes of ConvRot's groups that comfy-kitchen knows."""
_PACKED_TWO: Final = frozenset({"nvfp4"})
"""Two values in a byte."""
_CONFIG: Final = ".comfy_quant"
_MARKER: Final = "scaled_fp8"
_METADATA: Final = "_quantization_metadata"
_UNUSED: Final = (".input_scale", ".scale_input")
_LARGEST_CONFIG_BYTES: Final = 4096


def entries_of(
    tensors: Mapping[str, RawTensor], metadata: Mapping[str, str], read: Callable[[str], bytes]
) -> tuple[Entry, ...]:
    """The weights of a file. ``read`` gives a tensor's bytes.

    Raises:
        BadCheckpoint: a layer's format is not known, or a scale that it needs is missing.
    """
    configs = _configs(tensors, metadata, read)
    if homeless := sorted(layer for layer in configs if f"{layer}.weight" not in tensors):
        raise BadCheckpoint(
            f"Download the checkpoint again: it says how {homeless[0][:80]} is quantised, and has no such layer."
        )
    entries = [
        _entry(name, tensor, configs.get(name.removesuffix(".weight")), tensors)
        for name, tensor in tensors.items()
        if not _only_says_something(name, tensors)
    ]
    # A scale that no format asked for stays: the network has no place for it, and it is named.
    scales = {stored for entry in entries for stored in entry.scales.values()}
    return tuple(entry for entry in entries if entry.name not in scales)


def _only_says_something(name: str, tensors: Mapping[str, RawTensor]) -> bool:
    """Whether a tensor is about a layer's weight and no number of it is used."""
    if name.rpartition(".")[2] == _MARKER:
        return True
    return any(
        name.endswith(ending) and f"{name.removesuffix(ending)}.weight" in tensors for ending in (_CONFIG, *_UNUSED)
    )


def _configs(
    tensors: Mapping[str, RawTensor], metadata: Mapping[str, str], read: Callable[[str], bytes]
) -> dict[str, Mapping[str, Any]]:
    """Layer -> what is said about its weight."""
    configs: dict[str, Mapping[str, Any]] = {}
    if _METADATA in metadata:
        layers = _json(metadata[_METADATA]).get("layers")
        configs |= {
            layer: said
            for layer, said in (layers if isinstance(layers, dict) else {}).items()
            if isinstance(said, dict)
        }
    for name, tensor in tensors.items():
        if name.endswith(_CONFIG):
            if tensor.size_bytes > _LARGEST_CONFIG_BYTES:
                raise BadCheckpoint(f"Download the checkpoint again: {name} is no description of a format.")
            configs[name.removesuffix(_CONFIG)] = _json(read(name))
        elif name.endswith(".scale_weight"):
            layer = name.removesuffix(".scale_weight")
            weight = tensors.get(f"{layer}.weight")
            configs[layer] = {"format": FP8.get(weight.kind, "") if weight else ""}
    return configs


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(
            "Download the checkpoint again: what it says about its quantised weights is not readable."
        ) from error
    return found if isinstance(found, dict) else {}


def _entry(name: str, tensor: RawTensor, config: Mapping[str, Any] | None, tensors: Mapping[str, RawTensor]) -> Entry:
    if config is None:
        return Entry(name=name, kind=tensor.kind, shape=tensor.shape, stored_bytes=tensor.size_bytes)
    kind = str(config.get("format", ""))
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise BadCheckpoint(
            f"Choose a checkpoint in another format: {name} is stored as {kind[:40]!r}, and {known} are read."
        )
    layer = name.removesuffix(".weight")
    scales = {scale: _scale_name(layer, scale, tensors) for scale in FORMATS[kind]}
    if missing := [scale for scale, found in scales.items() if found not in tensors]:
        raise BadCheckpoint(f"Download the checkpoint again: {layer}.{missing[0]} of a quantised weight is missing.")
    if tensor.kind not in _STORED_AS[kind] or len(tensor.shape) != 2:
        raise BadCheckpoint(f"Download the checkpoint again: {name} is no matrix of {kind}, which it is said to be.")
    shape = (*tensor.shape[:-1], tensor.shape[-1] * 2) if kind in _PACKED_TWO else tensor.shape
    for scale, found in scales.items():
        if math.prod(tensors[found].shape) not in _scale_sizes(kind, scale, shape):
            raise BadCheckpoint(f"Download the checkpoint again: {found} is of another size than its weight asks for.")
    stored = (tensor, *(tensors[scale] for scale in scales.values()))
    return Entry(
        name=name,
        kind=kind,
        shape=shape,
        stored_bytes=sum(part.size_bytes for part in stored),
        scales=scales,
        settings=_settings(config, shape[1]),
    )


def _scale_name(layer: str, scale: str, tensors: Mapping[str, RawTensor]) -> str:
    older = f"{layer}.scale_weight"
    return older if scale == "weight_scale" and older in tensors else f"{layer}.{scale}"


def _scale_sizes(kind: str, scale: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many numbers a scale may have."""
    rows, columns = shape
    if kind not in _BLOCKS:
        return 1, rows
    if scale == "weight_scale_2":
        return (1,)
    return (-(-rows // 128) * 128 * (-(-columns // _BLOCKS[kind] // 4) * 4),)


def _settings(config: Mapping[str, Any], columns: int) -> dict[str, int | bool]:
    params = config.get("params")
    said = {**(params if isinstance(params, dict) else {}), **config}
    if not said.get("convrot"):
        return {}
    size = said.get("convrot_groupsize", 256)
    if size not in _TURNED_IN or columns % size:
        raise BadCheckpoint("Download the checkpoint again: what it says about its quantised weights is not readable.")
    return {"convrot": True, "convrot_groupsize": size}
