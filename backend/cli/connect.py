"""``tutti connect FILE``: let this machine's ComfyUI use a daemon on another one."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ConnectionProblem
from ..wire.connection import REMOTE_FILE, read_connection, write_connection
from . import state_directory
from .client import connected
from .main import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="what `tutti keys add` wrote on the daemon's machine"
    )
    parser.add_argument("--forget", action="store_true", help="use this machine's own daemon again")
    state_directory.add_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Import the file, and try it. It stays imported if the daemon does not answer just now."""
    remote = state_directory.prepare(state_directory.chosen(options)) / REMOTE_FILE
    if options.forget:
        remote.unlink(missing_ok=True)
        print("ComfyUI on this machine uses this machine's own daemon again.")
        return 0
    if options.file is None:
        raise CommandError("Name the connection file: `tutti connect FILE`, or `tutti connect --forget`.")
    try:
        connection = read_connection(options.file).imported()
    except FileNotFoundError:
        raise CommandError(f"Name a file that exists: {options.file} does not.") from None
    write_connection(remote, connection)
    print(f"ComfyUI on this machine now uses the daemon at {connection.endpoint}.")
    try:
        with connected(connection) as client:
            print(f"It answers: {client.status().state}.")
    except ConnectionProblem as error:
        raise CommandError(f"{error} (The file is imported all the same.)") from error
    return 0
