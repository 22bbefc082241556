"""Where sockets, FIFOs and stores lie: below the state directory, or in a short private place if that path is long or unusual.

A Unix socket's path has at most about 107 bytes, and torch reads a ``file://`` address as a URL.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from ..errors import ConnectionFileProblem

LONGEST_BYTES = 80
"""Leaves room for a file's name and for the suffix that libzmq adds while it binds."""
_PLAIN = re.compile(r"/[A-Za-z0-9_./-]*")


def make_runtime_dir(state_dir: Path) -> Path:
    """An empty private directory for this daemon's run.

    In a shared folder such as ``/tmp`` anybody may have put something under its name, so a link is never followed, and what is used in
    the end is the directory that this call made.

    Raises:
        ConnectionFileProblem: something of somebody else has its name, or a link, or a file.
        OSError: it cannot be made.
    """
    path = runtime_dir(state_dir)
    if _is_own_directory(path):
        shutil.rmtree(path)  # left by a daemon that was killed; the lock says that none runs
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)  # fails if the name is taken, by a link too
    except FileExistsError as error:
        raise _taken(path) from error
    if not _is_own_directory(path) or path.lstat().st_mode & 0o077:
        raise _taken(path)  # whoever may rename in the folder above exchanged it: that folder is no place for this
    return path


def _is_own_directory(path: Path) -> bool:
    """Whether a directory of this user has this name itself: not a link to one."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


def _taken(path: Path) -> ConnectionFileProblem:
    return ConnectionFileProblem(
        f"Have {path} removed by its owner, or give a state directory with a short plain path (--state-dir): "
        "a link, a file or a folder of another user has the name that the daemon's private folder needs."
    )


def runtime_dir(state_dir: Path) -> Path:
    """Where :func:`make_runtime_dir` makes it."""
    inside = state_dir.resolve() / "run"
    if len(os.fsencode(inside)) <= LONGEST_BYTES and _PLAIN.fullmatch(str(inside)):
        return inside
    digest = hashlib.blake2b(os.fsencode(state_dir.resolve()), digest_size=6).hexdigest()
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if len(os.fsencode(base)) > LONGEST_BYTES - 32 or not _PLAIN.fullmatch(str(base)):
        base = Path("/tmp")  # what is made there is private, and only used if this daemon made it
    return base / f"tutti-{os.geteuid()}-{digest}"
