"""A small pack with the real installer: the same install.py and backend/setup, without torch in its lock, so that an installation takes seconds.

Its ``tutti doctor`` fails when the pack's file ``sick`` says so. Everything else (venv, pip, hashes, build, pointer) is the real thing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "tutti"
version = "{version}"
[project.scripts]
tutti = "tutti.backend.cli:main"
[tool.setuptools]
package-dir = {{ "tutti" = "." }}
packages = ["tutti", "tutti.backend", "tutti.backend.setup"]
"""

CLI = """\
import sys
def main():
    print("doctor of", __file__)
    sys.exit({status})
"""


@dataclass(frozen=True)
class ToyPack:
    """A pack that is installed from a folder of wheels, without the network."""

    folder: Path
    data_home: Path
    """Parent of the data folder: its XDG_DATA_HOME."""
    wheels: Path

    @property
    def data(self) -> Path:
        return self.data_home / "tutti"

    @property
    def bin(self) -> Path:
        """Where its installation links the command ``tutti``."""
        return self.data_home / "bin"

    def write(self, *, version: str = "0.1.0", doctor_status: int = 0, lock: str | None = None) -> None:
        """(Re)write the pack."""
        setup = self.folder / "backend" / "setup"
        shutil.copytree(
            REPOSITORY / "backend" / "setup", setup, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copy(REPOSITORY / "install.py", self.folder)
        shutil.copy(REPOSITORY / "requirements.txt", self.folder)
        for name in ("__init__.py", "backend/__init__.py"):
            (self.folder / name).write_text("")
        (self.folder / "backend" / "cli.py").write_text(CLI.format(status=doctor_status))
        (self.folder / "pyproject.toml").write_text(PYPROJECT.format(version=version))
        (self.folder / "locks").mkdir(exist_ok=True)
        (self.folder / "locks" / "backend-cpu.txt").write_text(lock if lock is not None else build_tools_lock())

    def install(
        self, *arguments: str, python: str = sys.executable, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the pack's install.py, with the data folder in our hands and no NVIDIA driver to be found."""
        offline = f"--no-index --find-links '{self.wheels}'"
        environment = {
            **os.environ,
            "XDG_DATA_HOME": str(self.data_home),
            "XDG_BIN_HOME": str(self.bin),
            "TUTTI_PIP_ARGS": offline,
            **variables,
        }
        return subprocess.run(
            [python, str(self.folder / "install.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=250,
            env=environment,
            cwd=self.data_home,
        )


def download_build_tools(folder: Path) -> None:
    """Fill a folder with the wheels of :func:`build_tools_lock`: the only use of the network."""
    lock = folder / "lock.txt"
    lock.write_text(build_tools_lock())
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--require-hashes",
        "-r",
        str(lock),
        "-d",
        str(folder),
    ]
    subprocess.run(command, check=True, timeout=250)


def build_tools_lock() -> str:
    """What building a package needs, cut from the real lock."""
    text = (REPOSITORY / "locks" / "backend-cpu.txt").read_text()
    blocks = re.split(r"\n(?=\S)", text)
    return "\n".join(block for block in blocks if block.startswith(("setuptools==", "wheel=="))) + "\n"
