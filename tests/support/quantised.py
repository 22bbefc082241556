"""Checkpoints in quantised formats, made from plain ones: as ComfyUI, its converters and GGUF's tools write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from comfy_kitchen.tensor import get_layout_class
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

COMFY: Final = {
    "float8_e4m3fn": "TensorCoreFP8Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
}
"""Formats that ComfyUI names in ``.comfy_quant``, and who packs them."""
GGUF_TYPES: Final = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16")
"""What the gguf package can write."""
GGUF_K_TYPES: Final[Mapping[str, tuple[int, ...]]] = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""What it only reads -> where the factors (float16) lie in a block; everything else in a block may have any value."""


def is_quantised(name: str, tensor: Tensor) -> bool:
    """What converters pack: the matrices inside the blocks."""
    return tensor.ndim == 2 and name.endswith(".weight") and ("blocks." in name or "layers." in name)


def comfy_tensors(plain: Tensors, format: str, *, convrot: bool = False) -> tuple[Tensors, Tensors]:
    """The file's tensors, and the same weights as plain numbers."""
    layout = get_layout_class(COMFY[format])
    stored, values = dict(plain), dict(plain)
    for name, tensor in plain.items():
        if is_quantised(name, tensor):
            options = {"convrot": True, "convrot_groupsize": 64} if convrot else {}
            packed, params = layout.quantize(tensor, **options, **({"per_channel": True} if convrot else {}))
            layer = name.removesuffix(".weight")
            stored |= {
                f"{name}{ending}": part.contiguous()
                for ending, part in layout.state_dict_tensors(packed, params).items()
            }
            stored[f"{layer}.comfy_quant"] = as_bytes({"format": format, **options})
            values[name] = layout.dequantize(packed, params).float()
    return {name: raw(tensor) for name, tensor in stored.items()}, values


def raw(tensor: Tensor) -> Tensor:
    """Block scales are kept as bytes: safetensors has no name for their dtype."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e8m0fnu else tensor


def as_bytes(config: Mapping[str, object]) -> Tensor:
    """JSON as a tensor."""
    return torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)


def old_scaled_fp8(plain: Tensors, *, prefix: str = "") -> tuple[Tensors, Tensors]:
    """``scale_weight`` and a marker, as files of before ``.comfy_quant`` have it; scales of inputs too."""
    stored: Tensors = {f"{prefix}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    values: Tensors = {}
    for name, tensor in plain.items():
        if is_quantised(name, tensor):
            scale = tensor.abs().max() / 448
            packed = (tensor / scale).to(torch.float8_e4m3fn)
            layer = f"{prefix}{name.removesuffix('.weight')}"
            stored |= {
                f"{layer}.weight": packed,
                f"{layer}.scale_weight": scale,
                f"{layer}.scale_input": torch.tensor(0.5),
            }
            values[name] = packed.float() * scale
        else:
            stored[f"{prefix}{name}"] = values[name] = tensor
    return stored, values


def some_blocks(tensor: Tensor, type_name: str) -> np.ndarray:
    """Blocks of a K type for a matrix of this shape, of small values: uint8 ``[out, bytes of a row]``."""
    block_size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    dice = np.random.default_rng(tensor.numel())
    blocks = dice.integers(0, 256, (tensor.numel() // block_size, block_bytes), dtype=np.uint8)
    for begin in GGUF_K_TYPES[type_name]:
        factors = dice.uniform(1e-4, 3e-4, (len(blocks), 1)).astype(np.float16)
        blocks[:, begin : begin + 2] = factors.view(np.uint8)
    return blocks.reshape(len(tensor), -1)


def write_gguf(path: Path, plain: Tensors, type_name: str) -> Tensors:
    """Write a GGUF file; returns the same weights as plain numbers."""
    kind = GGMLQuantizationType[type_name]
    writer, values = GGUFWriter(path, "flux"), dict(plain)
    for name, tensor in plain.items():
        if is_quantised(name, tensor):
            packed = (
                quants.quantize(tensor.numpy(), kind) if type_name in GGUF_TYPES else some_blocks(tensor, type_name)
            )
            writer.add_tensor(name, packed, raw_dtype=kind)
            values[name] = torch.from_numpy(quants.dequantize(packed, kind)).reshape(tensor.shape).float()
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def rewritten(path: Path, change: Callable[[Tensors], tuple[Tensors, Tensors]], *, out: Path) -> Path:
    """A safetensors file in another format; beside it ``<out>.plain.safetensors`` with the same weights as plain numbers."""
    stored, values = change(load_file(path))
    save_file(stored, out)
    plain = out.with_suffix(".plain.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in values.items()}, plain)
    return plain
