"""How the command line talks to a daemon: through the same client as everybody."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ... import __version__
from ..client import Client
from ..errors import DaemonUnreachable
from ..wire.connection import Connection, find_connection
from .state_directory import DaemonLock

CONNECT_S = 5.0


def locate(state_dir: Path) -> Connection:
    """The daemon to talk to: an imported remote one, else the one of this machine if it runs.

    Raises:
        DaemonUnreachable: there is none.
        ConnectionFileProblem: the connection file is damaged, or readable by others.
    """
    try:
        connection = find_connection(state_dir)
    except FileNotFoundError:
        raise _no_daemon() from None
    if connection.pid is not None and DaemonLock(state_dir).holder() is None:
        raise _no_daemon()  # it was killed, and its file is still there
    return connection


@contextmanager
def connected(connection: Connection) -> Iterator[Client]:
    """A connected client, of no ComfyUI."""
    with Client(connection, client_id=secrets.token_hex(16), software=f"tutti {__version__} command line") as client:
        client.connect(timeout_s=CONNECT_S)
        yield client


def _no_daemon() -> DaemonUnreachable:
    return DaemonUnreachable("Start the daemon with `tutti serve`: none runs.")
