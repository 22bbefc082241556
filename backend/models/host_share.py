"""Tensors that the ranks of one host compute once and map together: weights in another dtype, weights that LoRAs changed."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

KINDS: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the dtypes that we compute in."""
_NAMES: Final = {dtype: name for name, dtype in KINDS.items()}
_ALIGNMENT_BYTES: Final = 64

log = logging.getLogger(__name__)

Shape = tuple[int, ...]


def shared_tensors(
    path: Path, shapes: Mapping[str, Shape], dtype: torch.dtype, make: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """The tensors of ``shapes``, each made once per host: the first rank that comes writes them to ``path``, all of them map it.

    Where the folder has no room for them (it may lie in memory), each rank keeps its own, and its log says so.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            needed = sum(map(math.prod, shapes.values())) * dtype.itemsize
            if shutil.disk_usage(path.parent).free < needed * 1.05:
                log.warning(
                    "no room to share %.1f GB of weights in %s: each rank keeps its own", needed / 1e9, path.parent
                )
                return {name: make(name).to(dtype) for name in shapes}
            temporary = path.with_suffix(".part")
            try:
                _write(temporary, shapes, dtype, make)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def _write(path: Path, shapes: Mapping[str, Shape], dtype: torch.dtype, make: Callable[[str], Tensor]) -> None:
    """A safetensors file, one tensor after the other, so that no more than one of them is in memory."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT_BYTES)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            file.write(_bytes(make(name).to(dtype)))


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
