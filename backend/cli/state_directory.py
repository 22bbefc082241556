"""The state directory as the command line sees it: which one, whether it can be used, and which daemon runs in it."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Final

from ... import __version__
from ..errors import ConnectionFileProblem
from ..wire.connection import LOCK_FILE, STATE_DIR_VARIABLE, ensure_private_dir, state_dir
from .main import CommandError

try:
    import fcntl
except ImportError:  # Windows: clients of daemons on other machines, and no daemon
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

LOGS_FOLDER: Final = "logs"
COMPILED_FOLDER: Final = "compiled"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """``--state-dir``"""
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help=f"where keys, sockets and logs are (default: ${STATE_DIR_VARIABLE}, or {state_dir()})",
    )


def chosen(options: argparse.Namespace) -> Path:
    """The directory that a command is about."""
    given: Path | None = options.state_dir
    return (given or state_dir()).expanduser().absolute()


def prepare(path: Path) -> Path:
    """Make the directory and its logs folder.

    Raises:
        CommandError: it cannot be made or written, or others may look into it.
    """
    try:
        ensure_private_dir(path)
        (path / LOGS_FOLDER).mkdir(mode=0o700, exist_ok=True)
    except ConnectionFileProblem as error:
        raise CommandError(f"{error} (state directory: {path})") from error
    except OSError as error:
        raise CommandError(
            f"{_remedy(error)}: the state directory {path} cannot be made ({error.strerror})."
        ) from error
    return path


def compiled_code_folder(path: Path) -> Path:
    """Where the ranks keep compiled code from one start to the next: a folder for the versions that are installed.

    It is code that ranks load: it lies in the state directory, which nobody else may write.
    """
    versions = "-".join(["python", platform.python_version(), *(_version(name) for name in ("torch", "diffusers"))])
    return path / COMPILED_FOLDER / f"{versions}-tutti-{__version__}"


def remove_other_versions(folder: Path) -> None:
    """Remove what versions that are installed no longer have compiled. Only the daemon of the state directory may."""
    others = [other for other in folder.parent.iterdir() if other != folder] if folder.parent.is_dir() else []
    for other in others:
        shutil.rmtree(other, ignore_errors=True)


def _version(distribution: str) -> str:
    try:
        return f"{distribution}-{importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution}-none"


def check_system() -> None:
    """Refuse to be a daemon on Windows.

    Raises:
        CommandError: this is Windows.
    """
    if not HAS_LOCKS:
        raise CommandError("Run `tutti serve` on Linux (on Windows: in WSL): the daemon runs there only for now.")


class DaemonLock:
    """Held by the one daemon of a state directory. The kernel lets go of it however the daemon ends."""

    def __init__(self, path: Path) -> None:
        self._path = path / LOCK_FILE
        self._fd: int | None = None

    def take(self) -> None:
        """Become the daemon.

        Raises:
            CommandError: another one runs, the disk cannot be written, or this system is Windows.
        """
        check_system()
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CommandError(f"{_remedy(error)}: {self._path} cannot be written ({error.strerror}).") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
        except BlockingIOError:
            os.close(fd)
            raise CommandError(
                f"Use the daemon that runs already (process {self.holder()}), or stop it with `tutti stop`: "
                f"a state directory has one daemon."
            ) from None
        except OSError as error:
            os.close(fd)
            raise CommandError(f"{_remedy(error)}: {self._path} cannot be written ({error.strerror}).") from error
        self._fd = fd

    def release(self) -> None:
        """Stop being the daemon."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def holder(self) -> int | None:
        """Process id of the daemon that runs, or None."""
        if not HAS_LOCKS:
            return None
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(ValueError):
                return int(os.pread(fd, 32, 0))
        finally:
            os.close(fd)
        return None


def _remedy(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "Free some disk space"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Choose a directory that you may write to (--state-dir, or ${STATE_DIR_VARIABLE})"
    return f"Choose another directory (--state-dir, or ${STATE_DIR_VARIABLE})"
