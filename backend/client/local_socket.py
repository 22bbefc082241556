"""Whether the Unix socket that a connection file names may be used: it is this user's, nobody else can have put it there, and somebody
listens.

Nothing proves to a client who listens at a Unix socket, so what is checked is who could: the daemon checks the other direction (ADR 10).
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Final

_PATIENCE_S: Final = 0.2
"""A Unix socket takes a connection at once or, with a full backlog, not now."""


def is_usable(path: str) -> bool:
    """Whether a daemon of this user listens at ``path``. If not, the daemon is to be reached over TCP, where its key is pinned."""
    return os.name == "posix" and _only_we_can_have_made(Path(path)) and _somebody_listens(path)


def _only_we_can_have_made(path: Path) -> bool:
    """Whether ``path`` is a socket of ours in a folder of ours that nobody else may enter. Links count as what they are: no socket, no
    folder. In a shared folder such as /tmp the name is free for anybody while no daemon runs."""
    try:
        folder, found = path.parent.lstat(), path.lstat()
    except OSError:
        return False
    is_private = stat.S_ISDIR(folder.st_mode) and not stat.S_IMODE(folder.st_mode) & 0o077
    return is_private and stat.S_ISSOCK(found.st_mode) and folder.st_uid == found.st_uid == os.geteuid()


def _somebody_listens(path: str) -> bool:
    """Whether a connection is taken. libzmq would try again for ever: at what a killed daemon left, or in a container without its daemon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
