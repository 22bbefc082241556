"""Tensors that the ranks of one host compute once and map together: weights in another dtype, weights that LoRAs changed."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import OutOfMemory

KINDS: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the dtypes that we compute in."""
_NAMES: Final = {dtype: name for name, dtype in KINDS.items()}
_ALIGNMENT_BYTES: Final = 64
_WAIT_S: Final = 0.2
"""How often a rank that waits for another one's work says that it is alive."""

log = logging.getLogger(__name__)

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What :func:`shared_tensors` gives."""

    tensors: Mapping[str, Tensor]
    checksum: str
    """Of all values, 32 hexadecimal digits: equal on hosts that computed the same."""
    is_private: bool = False
    """Whether this rank has them for itself, for want of room to share them."""


def shared_tensors(
    path: Path,
    shapes: Mapping[str, Shape],
    dtype: torch.dtype,
    make: Callable[[str], Tensor],
    progress: Callable[[float], None] = lambda _: None,
) -> Shared:
    """The tensors of ``shapes``, each made once per host: the first rank that comes writes them to ``path``, all of them map it.

    Where the folder has no room for them (it may lie in memory), each rank keeps its own, and its log says so. ``progress`` hears
    fractions up to 1, and is called while another rank writes, too.

    Raises :class:`OutOfMemory` where the host has no room for that either.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    checksum_file = path.with_suffix(".checksum")
    with _locked(path.with_suffix(".lock"), lambda: progress(0.0)):
        if not path.exists():
            temporary = path.with_suffix(".part")
            try:
                _check_room(path.parent, sum(map(math.prod, shapes.values())) * dtype.itemsize)
                checksum_file.write_text(_write(temporary, shapes, dtype, make, progress))
                temporary.replace(path)
                _give_memory_back()
            except OSError as error:
                log.warning(
                    "each rank keeps its own copy of what was computed: it cannot be shared (%s)", error.strerror
                )
                return _alone(shapes, dtype, make, progress)
            finally:
                temporary.unlink(missing_ok=True)
        return Shared(tensors=load_file(path), checksum=checksum_file.read_text())


def forget(path: Path) -> None:
    """Remove what was shared at ``path``, unless another rank is at it. One may have it mapped still: its pages stay until it lets go.

    The lock stays: a rank that waits for it and one that makes it anew would both believe that they have it.
    """
    lock_file = path.with_suffix(".lock")
    if not lock_file.exists():
        return
    with lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for suffix in (path.suffix, ".checksum"):
            path.with_suffix(suffix).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                while_waiting()
                time.sleep(_WAIT_S)
        yield


def _give_memory_back() -> None:
    """The C library keeps what large temporaries took, for the next ones; here there are no next ones."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(ctypes.c_size_t(0))


def _check_room(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes * 1.05:
        raise OSError(0, f"{needed_bytes / 1e9:.1f} GB are needed and {free_bytes / 1e9:.1f} GB free")


def _alone(
    shapes: Mapping[str, Shape], dtype: torch.dtype, make: Callable[[str], Tensor], progress: Callable[[float], None]
) -> Shared:
    _check_memory(sum(map(math.prod, shapes.values())) * dtype.itemsize)
    sums, tensors = Checksum(), {}
    for done, name in enumerate(shapes, start=1):
        tensors[name] = make(name).to(dtype).contiguous()
        sums.add(name, tensors[name])
        progress(done / len(shapes))
    return Shared(tensors=tensors, checksum=sums.text(), is_private=True)


def _check_memory(needed_bytes: int) -> None:
    """For every rank of this host: they all have come here, or will."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ranks * needed_bytes > psutil.virtual_memory().available:
        raise OutOfMemory(
            f"Free {needed_bytes / 1e9:.1f} GB where the daemon keeps its state, or choose the dtype of the file: {ranks} ranks have to "
            "share what they compute of the weights, and have no room for it."
        )


def _write(
    path: Path, shapes: Mapping[str, Shape], dtype: torch.dtype, make: Callable[[str], Tensor], progress: Callable[[float], None]
) -> str:  # fmt: skip
    """A safetensors file, one tensor after the other: the next is made while one is written. Returns the checksum."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT_BYTES)
    sums = Checksum()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        with ThreadPoolExecutor(1) as writer:
            written: Future[int] | None = None
            for done, name in enumerate(shapes, start=1):
                tensor = make(name).to(dtype).contiguous()
                if written is not None:
                    written.result()
                written = writer.submit(file.write, _bytes(tensor).numpy().data)
                sums.add(name, tensor)
                progress(done / len(shapes))
            if written is not None:
                written.result()
    return sums.text()


class Checksum:
    """Of tensors, at the speed of memory: it tells different results apart, not attackers."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, name: str, tensor: Tensor) -> None:
        """One more tensor; contiguous."""
        words = _bytes(tensor)
        whole = words[: len(words) // 8 * 8].view(torch.int64)
        rest = bytes(words[len(words) // 8 * 8 :].tolist())
        # The second sum makes the order of the words count, in blocks.
        blocks, left = whole[: len(whole) // 64 * 64].view(-1, 64).sum(1), whole[len(whole) // 64 * 64 :]
        total = int(blocks.sum()) + int(left.sum())
        weighted = int((blocks * torch.arange(1, len(blocks) + 1)).sum())
        self._digest.update(f"{name}|{total}|{weighted}|".encode() + rest)

    def text(self) -> str:
        """32 hexadecimal digits."""
        return self._digest.hexdigest()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
