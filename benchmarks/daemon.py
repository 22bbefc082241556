"""A daemon for the length of a benchmark, with a state directory of its own, and a client that is connected to it."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ..backend.client import Client
from ..backend.client.launch import start_daemon, wait_for_connection
from ..backend.errors import GroupFailed, NotReady

START_S: Final = 120.0
STOP_S: Final = 30.0


@contextlib.contextmanager
def daemon(models: Path, *, ranks: int, arguments: Sequence[str] = (), over_tcp: bool = False) -> Iterator[Client]:
    """``tutti serve`` with ``ranks`` CPU ranks over the models folder ``models``, ready to work; stopped at the end.

    ``over_tcp``: talk to it as another machine would, encrypted, though it is this one.
    """
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as folder:
        state = Path(folder)
        command = [sys.executable, "-m", "tutti.backend", "serve", "--device", "cpu", "--ranks", str(ranks)]
        command += ["--models", str(models), "--state-dir", str(state), *arguments]
        process = start_daemon(command, state)
        try:
            connection = wait_for_connection(process, state, START_S)
            if over_tcp:
                connection = replace(connection, local_socket=None)
            with Client(connection, client_id=secrets.token_hex(16), software="tutti benchmarks") as client:
                client.connect()
                _wait_until_ready(client)
                yield client
        finally:
            _stop(process)


def _wait_until_ready(client: Client) -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        status = client.status()
        if status.state == "ready":
            return
        if status.state == "failed":
            raise GroupFailed(f"Run `tutti doctor`: the worker group does not come up. {status.reason}")
        time.sleep(0.1)
    raise NotReady(f"Run `tutti doctor`: the worker group was not ready within {START_S:.0f} s.")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
