"""A daemon of one's own, for as long as a demo or a benchmark takes."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..client import Client
from ..client.launch import start_daemon, wait_for_connection
from ..errors import GroupFailed, NotReady
from ..wire.connection import Connection

_START_S: Final = 120.0
_STOP_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class OwnDaemon:
    """``tutti serve``, started by :meth:`start` and ready to work until :meth:`stop`."""

    connection: Connection
    _process: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls, models: Path, state: Path, *, device: str, ranks: int, software: str, arguments: Sequence[str] = ()
    ) -> OwnDaemon:
        """Start one over the models folder ``models`` with the state directory ``state``, and wait until its group is ready.

        Raises:
            TuttiError: it does not come up; nothing of it is left.
        """
        command = [sys.executable, "-m", "tutti.backend", "serve", "--device", device, "--ranks", str(ranks)]
        process = start_daemon([*command, "--models", str(models), "--state-dir", str(state), *arguments], state)
        try:
            connection = wait_for_connection(process, state, _START_S)
            _wait_until_ready(connection, software)
        except BaseException:
            _stop(process)
            raise
        return cls(connection, process)

    def stop(self) -> None:
        """Ask it to drain and go; its ranks go with it."""
        _stop(self._process)


def _wait_until_ready(connection: Connection, software: str) -> None:
    deadline_s = time.monotonic() + _START_S
    with Client(connection, client_id=secrets.token_hex(16), software=software) as client:
        client.connect()
        while time.monotonic() < deadline_s:
            status = client.status()
            if status.state == "ready":
                return
            if status.state == "failed":
                raise GroupFailed(f"Run `tutti doctor`: the worker group does not come up. {status.reason}")
            time.sleep(0.1)
    raise NotReady(f"Run `tutti doctor`: the worker group was not ready within {_START_S:.0f} s.")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
