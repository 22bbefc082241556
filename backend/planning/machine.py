"""Is there room to work: cores, memory, shared memory, disk, a loopback to listen on, a socket path that fits?"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import ConnectionFileProblem
from ..wire.connection import ensure_private_dir
from .findings import Finding, good, note, problem

_MIB: Final = 1024**2
_SHARED_MEMORY: Final = Path("/dev/shm")
SHARED_MEMORY_BYTES: Final = 256 * _MIB
"""What NCCL and torch want between ranks of one host. Containers often give 64 MiB."""
DISK_BYTES: Final = 256 * _MIB
"""For logs and sockets; models live elsewhere."""


def check_cores() -> Finding:
    """Cores and memory."""
    cores = os.cpu_count() or 1
    total = _memory_bytes()
    memory = f", {total / 1024**3:.0f} GiB of memory" if total else ""
    return good("machine", f"{cores} core(s){memory}")


def check_loopback() -> Finding:
    """Whether this process may listen on 127.0.0.1, where ComfyUI reaches the daemon."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
    except OSError as error:
        return problem(
            "loopback",
            f"cannot listen on 127.0.0.1 ({error.strerror})",
            "Bring the loopback interface up: `ip link set lo up`.",
        )
    return good("loopback", "127.0.0.1 can be listened on")


def check_shared_memory() -> Iterator[Finding]:
    """Free room in /dev/shm, where there is one."""
    if not _SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free
    text = f"{free / _MIB:.0f} MiB free in {_SHARED_MEMORY}"
    if free < SHARED_MEMORY_BYTES:
        yield note(
            "shared memory",
            text,
            "Give the container more: `docker run --shm-size=1g` (NCCL wants it between GPUs of one box).",
        )
    else:
        yield good("shared memory", text)


def check_state_dir(path: Path) -> Iterator[Finding]:
    """Whether the daemon's own folder can be used, by this user alone. Makes nothing: the daemon does, when it starts."""
    fix = "Set TUTTI_STATE_DIR to a folder that you may write to."
    present = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
        yield problem("state", f"{path} cannot be written", fix)
        return
    try:
        if present == path.absolute():
            ensure_private_dir(path)
    except ConnectionFileProblem as error:
        yield problem("state", f"{path}: others may look into it", error.message)
        return
    free = shutil.disk_usage(present).free
    if free < DISK_BYTES:
        text = f"{path}: {free / _MIB:.0f} MiB free"
        yield problem("state", text, "Free some disk space, or set TUTTI_STATE_DIR to another disk.")
    else:
        yield good("state", str(path) if path.exists() else f"{path} (made at the first start)")


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
