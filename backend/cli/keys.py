"""``tutti keys``: who may use this daemon from another machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..broker.keys import AuthorizedKeys, KeyPair, server_key
from ..wire.connection import Connection, write_connection
from . import state_directory
from .listening import split
from .main import CommandError
from .status import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    state_directory.add_argument(parser)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="who has a key")
    add = actions.add_parser("add", help="make a key, and a connection file to hand over")
    add.add_argument("name", metavar="NAME", help="whose key it is")
    add.add_argument(
        "--address",
        required=True,
        metavar="HOST:PORT",
        help="how the other machine reaches this one; serve with --listen there",
    )
    add.add_argument("--out", type=Path, metavar="FILE", help="the connection file (default: NAME.tutti.json)")
    actions.add_parser("revoke", help="shut a key out, at once").add_argument("name", metavar="NAME")


def run(options: argparse.Namespace) -> int:
    """List, add or revoke."""
    state_dir = state_directory.prepare(state_directory.chosen(options))
    keys = AuthorizedKeys(state_dir)
    try:
        if options.action == "add":
            return _add(options, state_dir, keys)
        if options.action == "revoke":
            keys.revoke(options.name)
            print(f"{options.name} is shut out, also where it is connected now.")
            return 0
    except ValueError as error:
        raise CommandError(str(error)) from error
    return _list(keys)


def _list(keys: AuthorizedKeys) -> int:
    rows = list(keys.names().items())
    print(
        "\n".join(table(("name", "public key"), rows))
        if rows
        else "Nobody has a key yet: `tutti keys add NAME --address HOST:PORT`."
    )
    return 0


def _add(options: argparse.Namespace, state_dir: Path, keys: AuthorizedKeys) -> int:
    host, port = split(options.address)
    if port == 0:
        raise CommandError(f"Give the port too, as HOST:PORT: {options.address!r} has none.")
    file: Path = options.out or Path(f"{options.name}.tutti.json")
    if file.exists():
        raise CommandError(f"Choose another file with --out: {file} exists.")
    client, server = KeyPair.make(), server_key(state_dir)
    keys.add(options.name, client.public)
    connection = Connection(
        endpoint=f"tcp://{f'[{host}]' if ':' in host else host}:{port}",
        server_public_key=server.public,
        client_public_key=client.public,
        client_secret_key=client.secret,
    )
    try:
        write_connection(file, connection)
    except OSError as error:
        keys.revoke(options.name)
        raise CommandError(f"Choose another file with --out: {file} cannot be written ({error.strerror}).") from error
    print(f"Wrote {file}. It holds a secret key: hand it over in private, and remove it here.")
    print(f"  here   tutti serve --listen {options.address}")
    print(f"  there  tutti connect {file.name}")
    return 0
