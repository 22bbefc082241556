"""This process's one connection to the daemon: found, started if need be, and built again when the daemon changed.

Nothing here runs at import. A daemon of this machine is started when none runs and its environment is installed, unless
``TUTTI_START_DAEMON=0`` stands in ComfyUI's environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..backend.errors import ConnectionProblem, DaemonUnreachable, Draining, GroupFailed
from ..backend.wire.connection import (
    FOLDERS_FILE,
    Connection,
    client_id,
    ensure_private_dir,
    find_connection,
    state_dir,
    write_private,
)
from . import host

if TYPE_CHECKING:  # it needs zmq, which is imported when the first connection is made, not while ComfyUI starts
    from ..backend.client import Client

START_VARIABLE: Final = "TUTTI_START_DAEMON"
CONNECT_S: Final = 5.0
START_S: Final = 60.0
READY_S: Final = 180.0
"""How long a worker group that is starting or restarting is waited for."""

Say = Callable[[str], None]
Idle = Callable[[], None]


class Session:
    """The connection that all nodes of this process share. One thread at a time; ComfyUI has one that runs prompts."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._client: Client | None = None
        self._connection: Connection | None = None

    def client(self, say: Say = host.say, idle: Idle = host.raise_if_interrupted, *, start: bool = True) -> Client:
        """A connected client. Starts the daemon if there is none and it may (`start`).

        Raises:
            DaemonUnreachable: there is no daemon, and none could be started.
            AuthFailed: it refused our key.
            ConnectionFileProblem: the connection file is damaged, or readable by others.
        """
        with self._lock:
            connection = self._find_or_start(say, idle, start)
            if self._client is None or connection != self._connection:
                self._drop()
                self._client = _connect(connection, idle)
                self._connection = connection
            return self._client

    def ready_client(self, say: Say = host.say, idle: Idle = host.raise_if_interrupted) -> Client:
        """A client whose daemon takes work; waits for a worker group that is still starting.

        Raises:
            GroupFailed: the group does not come up.
            Draining: the daemon is stopping.
        """
        with self.guarded():
            client = self.client(say, idle)
            deadline, told = time.monotonic() + READY_S, ""
            while True:
                status = client.status(idle)
                if status.state in ("ready", "busy"):
                    return client
                if status.state == "failed" or time.monotonic() > deadline:
                    raise GroupFailed(
                        f"Run `tutti doctor` and look at the daemon's log: its worker group is {status.state}. {status.reason}"
                    )
                if status.state == "draining":
                    raise Draining("Start the daemon again with `tutti serve`: it is stopping and takes no new work.")
                if status.state != told:
                    told = status.state
                    say(f"Tutti: the worker group is {status.state} …")
                _pause(0.2, idle)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Forget the connection when the daemon turns out to be gone, so that the next prompt looks for it afresh."""
        try:
            yield
        except ConnectionProblem:
            self._drop()
            raise

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = self._connection = None

    def _find_or_start(self, say: Say, idle: Idle, start: bool) -> Connection:
        directory = state_dir()
        publish_folders(directory)
        from ..backend.client.launch import daemon_runs

        with contextlib.suppress(FileNotFoundError):
            connection = find_connection(directory)
            if connection.pid is None or daemon_runs(directory, connection.pid):
                return connection
        if not start:
            raise DaemonUnreachable("Run `tutti serve`, or queue a workflow with a Tutti loader: no daemon runs.")
        return _start(directory, say, idle)


def publish_folders(directory: Path) -> None:
    """Tell a daemon of this machine where this ComfyUI keeps its models; written only when it changed."""
    text = json.dumps(host.model_folders(), indent=1, sort_keys=True) + "\n"
    path = ensure_private_dir(directory) / FOLDERS_FILE
    with contextlib.suppress(FileNotFoundError):
        if path.read_text(encoding="utf-8") == text:
            return
    write_private(path, text)


def _start(directory: Path, say: Say, idle: Idle) -> Connection:
    from ..backend.client.launch import find_executable, start_daemon, wait_for_connection

    executable = find_executable()
    if executable is None:
        raise DaemonUnreachable(
            "Run `python install.py backend` in the Tutti folder, then queue again: the back end is not installed on this machine. "
            "If it runs on another one, run `tutti connect FILE` with its connection file."
        )
    if os.environ.get(START_VARIABLE) == "0":
        raise DaemonUnreachable(
            f"Run `{executable} serve`: no daemon runs, and {START_VARIABLE}=0 keeps ComfyUI from starting it."
        )
    say("Tutti: starting the daemon …")
    return wait_for_connection(start_daemon([str(executable), "serve"], directory), directory, START_S, idle)


def _connect(connection: Connection, idle: Idle) -> Client:
    from ..backend.client import Client

    client = Client(connection, client_id=client_id(), software=host.software())
    try:
        client.connect(CONNECT_S, idle)
    except BaseException:
        client.close()
        raise
    return client


def _pause(seconds: float, idle: Idle) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        idle()
        time.sleep(0.02)


SESSION: Final = Session()
"""The one of this process."""
