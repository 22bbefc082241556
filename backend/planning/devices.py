"""Which GPUs this machine has, without torch: the daemon must not touch a GPU, and ``doctor`` must work when torch does not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

QUERY_S = 15.0
_FIELDS = "index,uuid,name,memory.total,driver_version"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU."""

    index: int
    uuid: str
    name: str
    memory_mib: int
    driver: str


def all_gpus() -> tuple[Gpu, ...]:
    """What the driver lists; empty without a driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        done = subprocess.run(
            [command, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=QUERY_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(gpu for line in done.stdout.splitlines() if (gpu := _read(line)))


def visible_gpus(environ: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, in its order."""
    return choose(all_gpus(), environ.get("CUDA_VISIBLE_DEVICES"))


def choose(gpus: Sequence[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """CUDA's rule: everything up to the first entry that names no GPU. Numbers count in the driver's order."""
    if visible is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.startswith("MIG-"):
            chosen.append(Gpu(-1, entry, "MIG slice", 0, ""))  # the driver's list above has whole GPUs only
            continue
        found = [gpu for gpu in gpus if (entry.isdecimal() and gpu.index == int(entry)) or _is_uuid_of(entry, gpu)]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen.append(found[0])
    return tuple(chosen)


def _is_uuid_of(entry: str, gpu: Gpu) -> bool:
    """A UUID may be cut short."""
    return entry.startswith("GPU-") and gpu.uuid.startswith(entry)


def _read(line: str) -> Gpu | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 5 or not parts[0].isdecimal():
        return None
    return Gpu(int(parts[0]), parts[1], parts[2], int(parts[3]) if parts[3].isdecimal() else 0, parts[4])
