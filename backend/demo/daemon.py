"""A daemon of one's own, for as long as a demo or a benchmark takes."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..client import Client
from ..client.launch import DEVICE_VARIABLES, last_lines, start_daemon, wait_for_connection
from ..errors import GroupFailed, NotReady
from ..wire.connection import Connection
from .terminal import Terminal

_START_S: Final = 120.0
_STOP_S: Final = 30.0
SOFTWARE: Final = "tutti demo"


@dataclass(frozen=True, slots=True)
class OwnDaemon:
    """``tutti serve``, started by :meth:`start` and ready to work until :meth:`stop`."""

    connection: Connection
    _process: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls, models: Path | None, state: Path, *, device: str, ranks: int, software: str, arguments: Sequence[str] = ()
    ) -> OwnDaemon:
        """Start one over the models folder ``models`` (None: only what ships) with the state directory ``state``, and wait until its group is ready.

        Raises:
            TuttiError: it does not come up; nothing of it is left.
        """
        command = [sys.executable, "-m", "tutti.backend", "serve", "--device", device, "--ranks", str(ranks)]
        command += [] if models is None else ["--models", str(models)]
        process = start_daemon([*command, "--state-dir", str(state), *arguments], state, keep=DEVICE_VARIABLES)
        try:
            connection = wait_for_connection(process, state, _START_S)
            _wait_until_ready(connection, software, state)
        except BaseException:
            _stop(process)
            raise
        return cls(connection, process)

    def stop(self) -> None:
        """Ask it to drain and go; its ranks go with it."""
        _stop(self._process)


def _wait_until_ready(connection: Connection, software: str, state: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    with Client(connection, client_id=secrets.token_hex(16), software=software) as client:
        client.connect()
        while time.monotonic() < deadline_s:
            status = client.status()
            if status.state == "ready":
                return
            if status.state == "failed":
                raise GroupFailed(
                    f"Run `tutti doctor`: the worker group does not come up. {status.reason} {last_lines(state)}"
                )
            time.sleep(0.1)
    raise NotReady(f"Run `tutti doctor`: the worker group was not ready within {_START_S:.0f} s. {last_lines(state)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except BaseException as impatience:  # time is up, or somebody asked a second time
        process.kill()
        process.wait()
        if not isinstance(impatience, subprocess.TimeoutExpired):
            raise


@contextmanager
def ending_like_ctrl_c() -> Iterator[None]:
    """A closed terminal or a polite kill ends what runs here as Ctrl-C does: with everything that was started. Main thread only."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def running_daemon(device: str, ranks: int, terminal: Terminal) -> Iterator[Client]:
    """A client of a daemon that is ready to work. The daemon is stopped at the end, whatever happened; nothing of it stays on disk."""
    own = None
    with ending_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="tutti-demo-") as folder:
        try:  # around the stage too: a signal may come while it prints that the daemon is up
            with terminal.stage(f"start a daemon with {ranks} {device.upper()} rank{'s' if ranks > 1 else ''}"):
                own = OwnDaemon.start(None, Path(folder) / "state", device=device, ranks=ranks, software=SOFTWARE)
            with Client(own.connection, client_id=secrets.token_hex(16), software=SOFTWARE) as client:
                client.connect()
                yield client
        finally:
            if own is not None:
                with terminal.stage("stop the daemon"):
                    own.stop()
