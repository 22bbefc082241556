"""The state directory and the connection file: how a client finds its daemon and proves that it may talk to it.

    <state dir>/            0700
      connection.json       0600   written by a local daemon while it runs
      remote.json           0600   written by ``tutti connect FILE``; wins over connection.json
      folders.json          0600   written by ComfyUI's side: where its models are
      client_id             0600   128 bits, made once
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import ConnectionFileProblem

CONNECTION_FILE: Final = "connection.json"
REMOTE_FILE: Final = "remote.json"
FOLDERS_FILE: Final = "folders.json"
CLIENT_ID_FILE: Final = "client_id"
STATE_DIR_VARIABLE: Final = "TUTTI_STATE_DIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What a client needs to reach a daemon. Keys are Z85 text, as CURVE uses it."""

    endpoint: str
    """``tcp://127.0.0.1:41234``"""
    server_public_key: str
    client_public_key: str
    client_secret_key: str
    pid: int | None = None
    """Process id of a local daemon; None in a file for another box."""


def state_dir() -> Path:
    """Where this user's Tutti keeps its state: ``TUTTI_STATE_DIR``, else the platform's place for application state."""
    override = os.environ.get(STATE_DIR_VARIABLE)
    if override:
        return Path(override)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "tutti" / "state"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "tutti" / "state"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tutti"


def ensure_private_dir(path: Path) -> Path:
    """Create ``path`` as 0700, or check that it is.

    Raises:
        ConnectionFileProblem: it exists and other users may enter it, or it belongs to somebody else.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_private(path)
    return path


def _check_private(path: Path) -> None:
    if os.name != "posix":
        return  # access lists of the profile folder protect it there
    info = path.stat()
    if info.st_uid != os.geteuid():
        raise ConnectionFileProblem(f"Remove {path.name} or run as its owner: it belongs to another user.")
    if stat.S_IMODE(info.st_mode) & 0o077:
        mode = "700" if path.is_dir() else "600"
        raise ConnectionFileProblem(f"Run `chmod {mode}` on {path.name}: other users can read it, and it holds a secret key.")


def write_private(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as 0600, atomically."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def write_connection(path: Path, connection: Connection) -> None:
    """Write a connection file."""
    fields = {name: getattr(connection, name) for name in Connection.__dataclass_fields__}
    write_private(path, json.dumps(fields, indent=1) + "\n")


def read_connection(path: Path) -> Connection:
    """Read a connection file.

    Raises:
        FileNotFoundError: there is none.
        ConnectionFileProblem: it is damaged, or readable by others.
    """
    _check_private(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Connection(**{name: _text_or_pid(name, data[name]) for name in Connection.__dataclass_fields__ if name in data})
    except (ValueError, KeyError, TypeError) as error:
        raise ConnectionFileProblem(f"Write {path.name} again (restart the daemon, or run `tutti connect`): it is damaged.") from error


def _text_or_pid(name: str, value: Any) -> Any:
    if type(value) is not (int if name == "pid" else str) and not (name == "pid" and value is None):
        raise TypeError(name)
    return value


def find_connection(directory: Path | None = None) -> Connection:
    """The daemon that this user's ComfyUI talks to: an imported remote one first, else the local one.

    Raises:
        FileNotFoundError: neither is known.
        ConnectionFileProblem: the file is damaged, or readable by others.
    """
    directory = directory or state_dir()
    remote = directory / REMOTE_FILE
    return read_connection(remote if remote.exists() else directory / CONNECTION_FILE)


def client_id(directory: Path | None = None) -> str:
    """This installation's id: 32 hexadecimal digits, made at first use."""
    directory = ensure_private_dir(directory or state_dir())
    path = directory / CLIENT_ID_FILE
    with contextlib.suppress(FileNotFoundError):
        known = path.read_text(encoding="ascii").strip()
        if len(known) == 32 and set(known) <= set("0123456789abcdef"):
            return known
    fresh = secrets.token_hex(16)
    write_private(path, fresh)
    return fresh
