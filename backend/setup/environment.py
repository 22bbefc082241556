"""A virtual environment filled from a lock file, and the note in it that makes a second run a fast no-op."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .runner import Runner, SetupError, clean_environment

NOTE = "tutti-setup.json"
"""File in the environment: step -> fingerprint of what that step installed."""
PIP_ARGUMENTS = "TUTTI_PIP_ARGS"
"""Environment variable with extra arguments for every ``pip install`` (an index with another torch build, a proxy, ...)."""

NETWORK_REMEDY = (
    "check the network, the free disk space and pip's settings, then run the same command again: it continues where it stopped. "
    f"Extra pip arguments (another index, a proxy) go into {PIP_ARGUMENTS}."
)

COMPLETE_PYTHON = (
    "use a complete Python: on Debian and Ubuntu `apt install python3-venv`; an embedded Python (ComfyUI portable) cannot make "
    "environments, so run install.py with a Python from python.org instead."
)
PROBE_S = 300.0
"""How long a Python may take to answer a question. Generous: an environment that seems dead is made anew."""


def fingerprint(*parts: str | bytes) -> str:
    """16 hex digits that change when any part does."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def split_lock(text: str, leave_out: Collection[str] = ()) -> tuple[str, list[str]]:
    """A lock's hashed part (a requirements file for ``--require-hashes``) and its plain requirements, without the packages to leave out."""
    hashed, plain = [], []
    for block in re.split(r"\n(?=\S)", text):
        requirement = "\n".join(line for line in block.splitlines() if not line.lstrip().startswith("#"))
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        if not name or name in leave_out:
            continue
        if "--hash=" in requirement:
            hashed.append(requirement)
        else:
            plain.append(requirement.strip())
    return "\n".join(hashed) + "\n" if hashed else "", plain


class Environment:
    """A virtual environment in ``folder``, made by the interpreter ``maker``."""

    def __init__(self, folder: Path, runner: Runner, maker: Interpreter) -> None:
        self.folder = folder
        self.runner = runner
        self.maker = maker
        self._scripts = folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        return self.command("python")

    def command(self, name: str) -> Path:
        """Path of an installed command."""
        return self._scripts / (f"{name}.exe" if os.name == "nt" else name)

    def satisfies(self, step: str, mark: str) -> bool:
        """Whether ``step`` was done here with this fingerprint, and the environment's Python is still there."""
        return self.python.exists() and self._notes().get(step) == mark

    def has_done(self, step: str) -> bool:
        """Whether ``step`` was ever completed here."""
        return step in self._notes()

    def record(self, step: str, mark: str) -> None:
        """Note that ``step`` is done, atomically."""
        if self.runner.dry_run:
            return
        draft = self.folder / f".{NOTE}"
        draft.write_text(json.dumps({**self._notes(), step: mark}, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, self.folder / NOTE)

    def _notes(self) -> Mapping[str, str]:
        try:
            notes = json.loads((self.folder / NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}

    def create(self) -> None:
        """Make the environment if it is not there, and anew if its making was interrupted: Python comes first, pip last."""
        if self._has_pip():
            return
        if self.folder.exists():
            self.runner.change(f"remove the broken environment {self.folder}", lambda: shutil.rmtree(self.folder))
        self.runner.run(
            [self.maker.executable, "-m", "venv", self.folder],
            title=f"Making the environment {self.folder}",
            remedy=COMPLETE_PYTHON,
        )

    def _has_pip(self) -> bool:
        """Asked of pip itself: half of it may be there."""
        if not self.python.exists():
            return False
        command = [os.fspath(self.python), "-m", "pip", "--version"]
        return _succeeds(command, self.runner.environment)

    def pip(self, *arguments: str | Path, title: str, command: str = "install") -> None:
        """``pip install`` (or another command that fetches) with the user's extra arguments."""
        extra = shlex.split(os.environ.get(PIP_ARGUMENTS, ""))
        self.runner.run([self.python, "-m", "pip", command, *extra, *arguments], title=title, remedy=NETWORK_REMEDY)

    def install_lock(self, lock: Path, *, leave_out: Collection[str] = (), compile_bytecode: bool = True) -> None:
        """Install exactly what the lock says: first what is hashed (nothing else is fetched), then torch with its own libraries.

        Skipped when the environment's note says that this very lock is installed.
        """
        text = lock.read_text(encoding="utf-8")
        mark = fingerprint(text, *sorted(leave_out))
        if self.satisfies(lock.name, mark):
            self.runner.say(f"{lock.name} is installed already")
            return
        flags = [] if compile_bytecode else ["--no-compile"]
        hashed, plain = split_lock(text, leave_out)
        if hashed:
            with _temporary_file(hashed) as path:
                self.pip(*flags, "--no-deps", "--require-hashes", "-r", path, title=f"Installing {lock.name}")
        if plain:
            self.pip(*flags, *plain, title=f"Installing {', '.join(plain)} (large)")
        self.record(lock.name, mark)


@contextlib.contextmanager
def _temporary_file(text: str) -> Iterator[Path]:
    """A file with this text while the block runs; closed, so that another program may open it on Windows too."""
    descriptor, name = tempfile.mkstemp(prefix="tutti-lock-", suffix=".txt")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        yield Path(name)
    finally:
        os.unlink(name)


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python that can make environments."""

    executable: str
    version: tuple[int, int]


def suitable_python(oldest: tuple[int, int]) -> Interpreter:
    """This Python if it is at least ``oldest`` and complete, else the newest such on the PATH. :class:`SetupError` if there is none."""
    if sys.version_info[:2] >= oldest and _makes_environments(sys.executable):
        return Interpreter(executable=sys.executable, version=sys.version_info[:2])
    for minor in range(14, oldest[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and _makes_environments(found):
            return Interpreter(executable=found, version=(3, minor))
    need = ".".join(map(str, oldest))
    if sys.version_info[:2] >= oldest:
        raise SetupError(
            f"{sys.executable} has no venv or no ensurepip, so it cannot make environments.", COMPLETE_PYTHON
        )
    raise SetupError(
        f"The back end needs Python {need} or newer (diffusers asks for it); this is Python {sys.version.split()[0]}.",
        f"install Python {need} or newer and run install.py with it. ComfyUI may stay on its older Python.",
    )


def _makes_environments(python: str) -> bool:
    """Asked of it: a version manager's shim may be there without the Python behind it, and Debian ships ensurepip apart."""
    return _succeeds([python, "-c", "import venv, ensurepip"], clean_environment(os.environ))


def _succeeds(command: list[str], environ: Mapping[str, str]) -> bool:
    try:
        return subprocess.run(command, env=environ, capture_output=True, timeout=PROBE_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
