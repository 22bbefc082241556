"""A real daemon for tests: ``tutti serve`` with CPU ranks in a state directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from tutti.backend.client import Client
from tutti.backend.errors import TuttiError
from tutti.backend.wire.connection import find_connection
from tutti.backend.wire.messages import Status

READY_S = 120.0
STOP_S = 20.0
NULL_RANKS = ("--rank-module", "tutti.benchmarks.null_rank")
"""Arguments for ranks that compute nothing, without torch: for tests of the daemon alone. They start in a moment."""
NULL_NETWORK = ("--rank-module", "tutti.backend.worker.null_rank")
"""Arguments for real ranks, torch and gloo and all, whose network computes nothing."""
NULL_MODEL = "diffusion_models/null.safetensors"
TUTTI = Path(sys.executable).with_name("tutti")
CLIENT_ID = "7e57" * 8


class Daemon:
    """One running ``tutti serve``."""

    def __init__(self, process: subprocess.Popen[bytes], state_dir: Path) -> None:
        self.process = process
        self.state_dir = state_dir

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A connected client of its own, not the one of any ComfyUI."""
        with Client(find_connection(self.state_dir), client_id=CLIENT_ID, software="tests") as client:
            client.connect(timeout_s=10.0)
            yield client

    @property
    def tree(self) -> list[psutil.Process]:
        """The daemon, the launcher and the ranks, and whatever they started."""
        daemon = psutil.Process(self.process.pid)
        return [daemon, *daemon.children(recursive=True)]

    def rank_pids(self) -> list[int]:
        """Process ids of the ranks, in order."""
        return [rank.pid for rank in self.status().ranks]

    def status(self) -> Status:
        """What the daemon says about itself."""
        with self.client() as client:
            return client.status()

    def _has_written_its_connection(self) -> bool:
        """A file that was left by a daemon that was killed is no use."""
        return find_connection(self.state_dir).pid == self.process.pid

    def log_text(self) -> str:
        """Everything the daemon and its ranks have logged."""
        files = sorted(path for path in (self.state_dir / "logs").rglob("*") if path.is_file())
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in files)

    def wait_until_ready(self, timeout_s: float = READY_S) -> None:
        """Wait for a worker group that takes work."""
        deadline, last = time.monotonic() + timeout_s, "no connection file yet"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self.process.returncode}\n{self.log_text()[-4000:]}")
            try:
                status = self.status() if self._has_written_its_connection() else None
                if status and status.state == "ready":
                    return
                last = f"{status.state} {status.reason}" if status else last
            except (FileNotFoundError, TuttiError) as error:
                last = str(error)
            time.sleep(0.1)
        raise RuntimeError(f"the daemon was not ready after {timeout_s} s ({last})\n{self.log_text()[-4000:]}")


@contextlib.contextmanager
def private_state_dir() -> Iterator[Path]:
    """A 0700 folder with a path short enough for a Unix socket, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="d"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def started(
    models: Path | None,
    state_dir: Path,
    *,
    ranks: int,
    plan: str = "auto",
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = (str(TUTTI),),
) -> Iterator[Daemon]:
    """Start a daemon with `ranks` CPU ranks over the models folder `models`, yield it at once, and stop it at the end."""
    logs = state_dir / "logs"
    logs.mkdir(exist_ok=True)
    command = [
        *program,
        "serve",
        "--device",
        "cpu",
        "--ranks",
        str(ranks),
        "--plan",
        plan,
        "--state-dir",
        str(state_dir),
    ]
    if models is not None:
        command += ["--models", str(models)]
    extra = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TUTTI_STATE_DIR": str(state_dir)}
    with (logs / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **extra, **(environment or {})},
        )
    try:
        yield Daemon(process, state_dir)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


@contextlib.contextmanager
def running(
    models: Path | None,
    state_dir: Path,
    *,
    ranks: int,
    plan: str = "auto",
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = (str(TUTTI),),
) -> Iterator[Daemon]:
    """A daemon whose worker group is ready."""
    with started(
        models, state_dir, ranks=ranks, plan=plan, arguments=arguments, environment=environment, program=program
    ) as daemon:
        daemon.wait_until_ready()
        yield daemon


def write_null_model(models: Path) -> Path:
    """A models folder with one safetensors file that null ranks take for a model."""
    path = models / NULL_MODEL
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return models
