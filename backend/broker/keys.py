"""Keys on disk: the daemon's own, and those of the clients that may talk to it.

    server_key.json        0600   the daemon's key pair; stays the same, so that connection files stay valid
    authorized_keys.json   0600   name -> public key of clients on other boxes (``tutti keys add``)

The client of this box gets a fresh key pair at every start of the daemon, in ``connection.json``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq

from ..errors import ConnectionFileProblem
from ..wire.connection import read_private, write_private

SERVER_KEY_FILE: Final = "server_key.json"
AUTHORIZED_KEYS_FILE: Final = "authorized_keys.json"
LOCAL: Final = "local"
"""Name of the key of this box's own client."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_Z85_KEY: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, as Z85 text."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def make(cls) -> KeyPair:
        """A new pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode("ascii"), secret.decode("ascii"))


def server_key(state_dir: Path) -> KeyPair:
    """The daemon's key pair, made at first use.

    Raises:
        ConnectionFileProblem: the file is damaged, or readable by others.
    """
    path = state_dir / SERVER_KEY_FILE
    try:
        data = _read_table(path)
    except FileNotFoundError:
        pair = KeyPair.make()
        write_private(path, json.dumps({"public": pair.public, "secret": pair.secret}) + "\n")
        return pair
    if set(data) != {"public", "secret"} or not all(_is_key(value) for value in data.values()):
        raise ConnectionFileProblem(f"Remove {path.name} and hand out new connection files: it is damaged.")
    return KeyPair(data["public"], data["secret"])


class AuthorizedKeys:
    """The clients of other boxes. The file is read again when it changes, so that a revoked key is out at once."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / AUTHORIZED_KEYS_FILE
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, str] = {}

    def names(self) -> dict[str, str]:
        """Name -> public key.

        Raises:
            ConnectionFileProblem: the file is damaged, or readable by others.
        """
        try:
            info = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._keys = None, {}
            return {}
        stamp = (info.st_mtime_ns, info.st_size)
        if stamp != self._stamp:
            self._keys, self._stamp = self._read(), stamp
        return dict(self._keys)

    def add(self, name: str, public: str) -> None:
        """Let the holder of a key in.

        Raises:
            ValueError: the name is taken, or is none.
        """
        if not _NAME.fullmatch(name) or name == LOCAL:
            raise ValueError(
                f"Choose a name of letters, digits, dots and dashes: {name[:64]!r} is none (or is reserved)."
            )
        keys = self.names()
        if name in keys:
            raise ValueError(f"Run `tutti keys revoke {name}` first, or choose another name: {name} has a key already.")
        self._write(keys | {name: public})

    def revoke(self, name: str) -> None:
        """Shut the holder of a key out.

        Raises:
            ValueError: there is no such name.
        """
        keys = self.names()
        if name not in keys:
            known = ", ".join(sorted(keys)) or "none"
            raise ValueError(f"Name one of the keys that there are ({known}): {name[:64]!r} is not one of them.")
        del keys[name]
        self._write(keys)

    def _write(self, keys: dict[str, str]) -> None:
        write_private(self._path, json.dumps(keys, indent=1) + "\n")
        self._stamp = None

    def _read(self) -> dict[str, str]:
        data = _read_table(self._path)
        if not all(_NAME.fullmatch(name) and _is_key(key) for name, key in data.items()):
            raise ConnectionFileProblem(f"Remove {self._path.name} and add the keys again: it is damaged.")
        return data


def _read_table(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_private(path))
    except (ValueError, RecursionError) as error:
        raise ConnectionFileProblem(f"Remove {path.name}: it is damaged.") from error
    if type(data) is not dict:
        raise ConnectionFileProblem(f"Remove {path.name}: it is damaged.")
    return data


def _is_key(value: Any) -> bool:
    return type(value) is str and _Z85_KEY.fullmatch(value) is not None
