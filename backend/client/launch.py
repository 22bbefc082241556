"""Start the daemon of this machine from a client, and wait until it is ready. Standard library only."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from ..errors import DaemonUnreachable
from ..setup.folders import data_folder, read_current
from ..wire.connection import (
    CONNECTION_FILE,
    LOCK_FILE,
    STATE_DIR_VARIABLE,
    Connection,
    ensure_private_dir,
    read_connection,
)

EXECUTABLE_VARIABLE: Final = "TUTTI_EXECUTABLE"
"""Overrides which ``tutti`` is started. For people and tests; no workflow can set it."""

DEVICE_VARIABLES: Final = frozenset(
    {"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"}
)  # fmt: skip
"""What says which devices a process sees."""
# What ComfyUI sets for itself and what would bend the daemon: device choice, allocators, and the path to ComfyUI's packages.
_NOT_INHERITED: Final = frozenset(
    {
        *DEVICE_VARIABLES,
        "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING",
        "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCHINDUCTOR_CACHE_DIR",
        "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP",
        "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    }
)  # fmt: skip


def find_executable() -> Path | None:
    """The ``tutti`` command of the back end's environment on this machine, or None if there is none."""
    override = os.environ.get(EXECUTABLE_VARIABLE)
    if override:
        return Path(override) if Path(override).is_file() else None
    current = read_current(data_folder())
    return Path(current.executable) if current else None


def clean_environment(environ: Mapping[str, str], keep: Collection[str] = ()) -> dict[str, str]:
    """``environ`` without what belongs to ComfyUI's own process, but for the variables ``keep``."""
    return {name: value for name, value in environ.items() if name not in _NOT_INHERITED or name in keep}


def start_daemon(command: Sequence[str], directory: Path, keep: Collection[str] = ()) -> subprocess.Popen[bytes]:
    """Start a daemon (``command``: ``[tutti, "serve", ...]``) in a session of its own, so that it outlives us.

    ``directory`` becomes its state directory; its output goes to ``logs/serve.log`` there. ``keep``: see :func:`clean_environment`.
    """
    logs = ensure_private_dir(directory) / "logs"
    logs.mkdir(exist_ok=True)
    environment = clean_environment(os.environ, keep) | {STATE_DIR_VARIABLE: str(directory)}
    with (logs / "serve.log").open("ab") as log:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def daemon_runs(directory: Path, pid: int) -> bool:
    """Whether the daemon ``pid`` that wrote the connection file of ``directory`` still runs.

    It holds a lock on a file there, which the kernel takes from it however it ends: a process that only has its number, or a
    child of ours that nobody has waited for, does not. Without locks (not POSIX) the connection file is believed.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        os.kill(pid, 0)
        lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's process, or a daemon that keeps no such file
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def wait_for_connection(
    process: subprocess.Popen[bytes], directory: Path, timeout_s: float, idle: Callable[[], None] = lambda: None
) -> Connection:
    """Wait until the daemon that was just started (or one that came first) has written its connection file: then its broker listens.

    Raises:
        DaemonUnreachable: it ended, or took longer than ``timeout_s``; the text has its last lines.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        idle()
        with contextlib.suppress(FileNotFoundError):
            connection = read_connection(directory / CONNECTION_FILE)
            if connection.pid == process.pid:
                return connection
            if process.poll() is not None and connection.pid and daemon_runs(directory, connection.pid):
                return connection  # somebody else started one at the same moment, and theirs was first
        if process.poll() is not None:
            raise DaemonUnreachable(
                f"Run `tutti doctor`: the daemon ended at its start with status {process.returncode}. {last_lines(directory)}"
            )
        time.sleep(0.05)
    raise DaemonUnreachable(
        f"Run `tutti doctor`: the daemon did not come up within {timeout_s:.0f} s. {last_lines(directory)}"
    )


def last_lines(directory: Path, count: int = 5) -> str:
    """The end of a daemon's own log, for a message; empty if there is none."""
    with contextlib.suppress(OSError):
        lines = (directory / "logs" / "serve.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "Its last lines: " + " | ".join(line.strip() for line in lines[-count:] if line.strip())
    return ""
