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
import re
import secrets
import stat
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ..errors import ConnectionFileProblem

CONNECTION_FILE: Final = "connection.json"
REMOTE_FILE: Final = "remote.json"
FOLDERS_FILE: Final = "folders.json"
CLIENT_ID_FILE: Final = "client_id"
LOCK_FILE: Final = "daemon.lock"
"""Locked by the one daemon of a state directory for as long as it lives."""
STATE_DIR_VARIABLE: Final = "TUTTI_STATE_DIR"


_LARGEST_FILE_BYTES: Final = 64 * 1024
_ENDPOINT: Final = re.compile(r"tcp://[^\s/]+:[0-9]{1,5}")
_SOCKET_PATH: Final = re.compile(r"/[^\0\n]{1,105}")
_Z85_KEY: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_CLIENT_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What a client needs to reach a daemon. Keys are Z85 text, as CURVE uses it."""

    endpoint: str
    """``tcp://127.0.0.1:41234``; always encrypted."""
    server_public_key: str
    client_public_key: str
    client_secret_key: str = field(repr=False)
    pid: int | None = None
    """Process id of a local daemon; None in a file for another box."""
    local_socket: str | None = None
    """Path of a Unix socket of the same daemon in a private folder of this user. No bytes leave the machine there, so nothing is
    encrypted; the kernel tells the daemon whose process it talks to."""

    def __post_init__(self) -> None:
        if not _ENDPOINT.fullmatch(self.endpoint):
            raise ValueError("endpoint: expected tcp://HOST:PORT")
        for name in ("server_public_key", "client_public_key", "client_secret_key"):
            if not _Z85_KEY.fullmatch(getattr(self, name)):
                raise ValueError(f"{name}: expected 40 characters of Z85")
        if self.pid is not None and (type(self.pid) is not int or self.pid < 1):
            raise ValueError("pid: expected a positive integer")
        if self.local_socket is not None and not (
            isinstance(self.local_socket, str) and _SOCKET_PATH.fullmatch(self.local_socket)
        ):
            raise ValueError("local_socket: expected an absolute path that a Unix socket can have")

    def imported(self) -> Connection:
        """The same without what means something only on the machine whose daemon wrote the file: a process and a path."""
        return replace(self, pid=None, local_socket=None)


def state_dir() -> Path:
    """Where this user's Tutti keeps its state: ``TUTTI_STATE_DIR``, else the platform's place for application state."""
    override = os.environ.get(STATE_DIR_VARIABLE)
    if override:
        return Path(override).expanduser().absolute()  # ranks and clients run in other folders than the daemon
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
    _check_private(path, path.stat(), "700")
    return path


def _check_private(path: Path, info: os.stat_result, mode: str) -> None:
    if os.name != "posix":
        return  # access lists of the profile folder protect it there
    if info.st_uid != os.geteuid():
        raise ConnectionFileProblem(f"Remove {path.name} or run as its owner: it belongs to another user.")
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise ConnectionFileProblem(
            f"Run `chmod {mode}` on {path.name}: other users can read it, and it holds a secret key."
        )


def write_private(path: Path, text: str, *, keep_existing: bool = False) -> None:
    """Write ``text`` to ``path`` as 0600. A reader sees the old file or the new one, never a part.

    Raises:
        FileExistsError: ``keep_existing``, and the file is there.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a crash could leave the new name on an empty file
        if keep_existing:
            os.link(temporary, path)
        else:
            Path(temporary).replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()


def read_private(path: Path) -> str:
    """The text of a small private file of ours. Checked and read through one handle: nobody can swap it in between.

    Raises:
        FileNotFoundError: there is none.
        ConnectionFileProblem: others can read it, or it is no readable file of a sane size.
        UnicodeDecodeError: it is not text.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            info = os.fstat(file.fileno())
            _check_private(path, info, "600")
            if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST_FILE_BYTES:
                raise ConnectionFileProblem(f"Remove {path.name}: it is no file of Tutti.")
            return file.read(_LARGEST_FILE_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConnectionFileProblem(f"Make {path.name} a file that you can read: it is none now.") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe put in its place must not make us wait


def write_connection(path: Path, connection: Connection) -> None:
    """Write a connection file."""
    fields = {name: getattr(connection, name) for name in Connection.__dataclass_fields__}
    write_private(path, json.dumps(fields, indent=1) + "\n")


def read_connection(path: Path) -> Connection:
    """Read a connection file. Fields that this version does not know are ignored.

    Raises:
        FileNotFoundError: there is none.
        ConnectionFileProblem: it is damaged, or readable by others.
    """
    try:
        data = json.loads(read_private(path))
        return Connection(**{name: data[name] for name in Connection.__dataclass_fields__ if name in data})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConnectionFileProblem(
            f"Write {path.name} again (restart the daemon, or run `tutti connect`): it is damaged."
        ) from error


def find_connection(directory: Path | None = None) -> Connection:
    """The daemon that this user's ComfyUI talks to: an imported remote one first, else the local one.

    Raises:
        FileNotFoundError: neither is known.
        ConnectionFileProblem: the file is damaged, or readable by others.
    """
    directory = directory or state_dir()
    with contextlib.suppress(FileNotFoundError):
        return read_connection(directory / REMOTE_FILE)
    return read_connection(directory / CONNECTION_FILE)


def client_id(directory: Path | None = None) -> str:
    """This installation's id: 32 hexadecimal digits, made at first use, and again if its file is damaged.

    Raises:
        ConnectionFileProblem: the directory is not private, or the file cannot be read.
    """
    directory = ensure_private_dir(directory or state_dir())
    path = directory / CLIENT_ID_FILE
    known = _known_client_id(path)
    if known:
        return known
    fresh = secrets.token_hex(16)
    try:
        write_private(path, fresh, keep_existing=known is None)
    except FileExistsError:  # another process was faster
        return _known_client_id(path) or fresh
    return fresh


def _known_client_id(path: Path) -> str | None:
    """None: there is no file. Empty: there is one, and it is damaged."""
    try:
        text = read_private(path).strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""
    return text if _CLIENT_ID.fullmatch(text) else ""
