"""Where sockets, FIFOs and stores lie: below the state directory, or in a short private place if that path is long or unusual.

A Unix socket's path has at most about 107 bytes, and torch reads a ``file://`` address as a URL.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from ..wire.connection import ensure_private_dir

LONGEST_BYTES = 80
"""Leaves room for a file's name and for the suffix that libzmq adds while it binds."""
_PLAIN = re.compile(r"/[A-Za-z0-9_./-]*")


def make_runtime_dir(state_dir: Path) -> Path:
    """An empty private directory for this daemon's run.

    Raises:
        ConnectionFileProblem: it belongs to somebody else.
        OSError: it cannot be made.
    """
    path = runtime_dir(state_dir)
    if path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.geteuid():
        shutil.rmtree(path)  # left by a daemon that was killed; the lock says that none runs
    return ensure_private_dir(path)


def runtime_dir(state_dir: Path) -> Path:
    """Where :func:`make_runtime_dir` makes it."""
    inside = state_dir.resolve() / "run"
    if len(os.fsencode(inside)) <= LONGEST_BYTES and _PLAIN.fullmatch(str(inside)):
        return inside
    digest = hashlib.blake2b(os.fsencode(state_dir.resolve()), digest_size=6).hexdigest()
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if len(os.fsencode(base)) > LONGEST_BYTES - 32 or not _PLAIN.fullmatch(str(base)):
        base = Path("/tmp")  # the directory itself is private and checked
    return base / f"tutti-{os.geteuid()}-{digest}"
