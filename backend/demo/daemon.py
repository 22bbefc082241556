"""A daemon for one run, with a state directory of its own."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..client import Client
from ..client.launch import start_daemon, wait_for_connection
from ..errors import GroupFailed, NotReady
from ..wire.connection import Connection
from .terminal import Terminal

_START_S: Final = 120.0
_STOP_S: Final = 30.0


@contextmanager
def running_daemon(device: str, ranks: int, terminal: Terminal) -> Iterator[Client]:
    """A client of a daemon that is ready to work. The daemon is stopped at the end, whatever happened; nothing of it stays on disk."""
    with tempfile.TemporaryDirectory(prefix="tutti-demo-") as folder:
        state = Path(folder) / "state"
        command = [sys.executable, "-m", "tutti.backend", "serve", "--device", device, "--ranks", str(ranks)]
        with terminal.stage(f"start a daemon with {ranks} {device.upper()} rank{'s' if ranks > 1 else ''}"):
            process = start_daemon([*command, "--state-dir", str(state)], state)
            try:
                connection = wait_for_connection(process, state, _START_S)
                _wait_until_ready(connection)
            except BaseException:
                _stop(process)
                raise
        try:
            with _client(connection) as client:
                yield client
        finally:
            with terminal.stage("stop the daemon"):
                _stop(process)


def _wait_until_ready(connection: Connection) -> None:
    deadline = time.monotonic() + _START_S
    with _client(connection) as client:
        while time.monotonic() < deadline:
            status = client.status()
            if status.state == "ready":
                return
            if status.state == "failed":
                raise GroupFailed(f"Run `tutti doctor`: the worker group does not come up. {status.reason}")
            time.sleep(0.1)
    raise NotReady(f"Run `tutti doctor`: the worker group was not ready within {_START_S:.0f} s.")


@contextmanager
def _client(connection: Connection) -> Iterator[Client]:
    with Client(connection, client_id=secrets.token_hex(16), software="tutti demo") as client:
        client.connect()
        yield client


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the daemon to drain and go; its ranks go with it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
