"""Which torch the back end gets: its own, or the one that ComfyUI already has, linked file by file.

Linking makes real folders and links only the files in them, so nothing (byte code, pip) ever writes into ComfyUI's environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .runner import Runner, SetupError, clean_environment

OLDEST_TORCH = (2, 11)
OWN_TORCH = "2.13.0"
OWN_CUDA = (13, 0)
"""CUDA version of the package index's own build of ``OWN_TORCH``."""

LINKED = re.compile(
    r"^(torch|functorch|triton|pytorch-triton|triton-windows|nvidia-.+|cuda-(bindings|pathfinder|toolkit))$"
)
"""Distributions that are linked: torch, triton, and the NVIDIA libraries that torch's wheel asks for."""

# Run by the other Python. It imports nothing of torch: versions are read from files.
_PROBE = r"""
import importlib.metadata, json, re, sys
from pathlib import Path
wanted = re.compile(sys.argv[1])
found = {}
for dist in importlib.metadata.distributions():
    name = re.sub(r"[-_.]+", "-", dist.metadata["Name"] or "").lower()
    if name in found or not wanted.match(name):
        continue
    root = str(Path(str(dist.locate_file(""))).resolve())
    found[name] = {"version": dist.version, "root": root, "files": [str(f) for f in dist.files or ()]}
build = ""
if "torch" in found:
    path = Path(found["torch"]["root"]) / "torch" / "version.py"
    build = path.read_text() if path.is_file() else ""
print(json.dumps({"python": list(sys.version_info[:2]), "prefix": sys.prefix, "build": build, "found": found}))
"""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What the NVIDIA driver of this machine offers."""

    cuda: tuple[int, int] | None
    """Newest CUDA version it runs; None: no usable NVIDIA driver."""
    note: str
    """One line for the user."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One installed distribution of the other Python."""

    version: str
    root: Path
    """The site folder that the file names are relative to."""
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The torch that another Python has."""

    python: str
    python_version: tuple[int, int]
    torch: str
    """Version, or the empty string: none."""
    cuda: tuple[int, int] | None
    """CUDA version of the build; None: a CPU build."""
    other_device: bool
    """Built for ROCm or another device that is neither CPU nor CUDA."""
    distributions: Mapping[str, Distribution] = field(default_factory=dict)


def detect_driver(command: str = "nvidia-smi") -> Driver:
    """Ask ``nvidia-smi``. Its absence means a CPU machine; its failure is said."""
    try:
        done = subprocess.run([command], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return Driver(cuda=None, note="no nvidia-smi on this machine: the back end will run on the CPU")
    except (OSError, subprocess.TimeoutExpired) as problem:
        return Driver(cuda=None, note=f"nvidia-smi does not run ({problem}): the back end will run on the CPU")
    match = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+)\.(\d+)", done.stdout)
    if done.returncode != 0 or match is None:
        said = (done.stdout + done.stderr).strip().splitlines()
        return Driver(
            cuda=None, note=f"nvidia-smi failed ({said[0] if said else 'no output'}): the back end will run on the CPU"
        )
    cuda = int(match[1]), int(match[2])
    return Driver(cuda=cuda, note=f"NVIDIA driver found, good for CUDA {dotted(cuda)}")


def look_into(python: str) -> Found:
    """Which torch ``python`` has. :class:`SetupError` when it cannot be asked."""
    remedy = "give --python the Python that runs ComfyUI, or use --torch own."
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, LINKED.pattern],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            env=clean_environment(os.environ),
        )
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as problem:
        raise SetupError(f"{python} could not be asked for its torch: {problem}", remedy) from problem
    distributions = {
        name: Distribution(version=entry["version"], root=Path(entry["root"]), files=tuple(entry["files"]))
        for name, entry in answer["found"].items()
    }
    major, minor = answer["python"]
    return Found(
        python=python,
        python_version=(major, minor),
        torch=distributions["torch"].version if "torch" in distributions else "",
        cuda=_built_for(answer["build"], "cuda"),
        other_device=_built_for(answer["build"], "hip") is not None or _built_for(answer["build"], "xpu") is not None,
        distributions=distributions,
    )


def why_not_reuse(found: Found, driver: Driver, python_version: tuple[int, int]) -> str | None:
    """The reason why this torch cannot serve an environment of ``python_version`` under this driver; None: it fits."""
    if not found.torch:
        return f"{found.python} has no torch"
    if found.python_version != python_version:
        return (
            f"it belongs to Python {dotted(found.python_version)} and the back end uses Python {dotted(python_version)}"
        )
    if _numbers(found.torch) < OLDEST_TORCH:
        return f"torch {found.torch} is older than {dotted(OLDEST_TORCH)}"
    if found.other_device:
        return f"torch {found.torch} is built for a device that is neither CPU nor CUDA"
    if not found.distributions["torch"].files:
        return f"torch {found.torch} was not installed from a wheel"
    if driver.cuda is not None and found.cuda is None:
        return f"torch {found.torch} is a CPU build and this machine has an NVIDIA GPU"
    if driver.cuda is not None and found.cuda is not None and found.cuda[0] > driver.cuda[0]:
        return f"torch {found.torch} needs CUDA {dotted(found.cuda)} and the driver offers {dotted(driver.cuda)}"
    return None


def check_own(driver: Driver, extra_arguments: str) -> None:
    """:class:`SetupError` when the package index's torch cannot run under this driver and no other index is named."""
    if driver.cuda is not None and driver.cuda[0] < OWN_CUDA[0] and not extra_arguments:
        raise SetupError(
            f"torch {OWN_TORCH} from the package index needs CUDA {dotted(OWN_CUDA)}; the installed NVIDIA driver offers {dotted(driver.cuda)}.",
            "update the NVIDIA driver; or reuse ComfyUI's torch (`install.py backend --torch reuse --python PATH`, PATH being the Python that runs "
            "ComfyUI); or name an index with a fitting build in TUTTI_PIP_ARGS.",
        )


def link_torch(found: Found, site: Path, runner: Runner) -> None:
    """Link the files of torch, triton and the NVIDIA libraries into the site folder ``site``; never writes to where they come from."""
    for name, distribution in sorted(found.distributions.items()):
        for file in distribution.files:
            # Commands (../../bin/torchrun) carry the other Python's path in their first line, and byte code is written anew.
            if file.startswith("..") or "__pycache__" in file:
                continue
            source, target = distribution.root / file, site / file
            if source.is_file() and not os.path.lexists(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(source, target)
        runner.say(f"linked {name} {distribution.version}")


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _link(source: Path, target: Path) -> None:
    """A symbolic link; where the platform forbids it (Windows without developer mode), a second name of the same file."""
    try:
        os.symlink(source, target)
    except OSError:
        try:
            os.link(source, target)
        except OSError as problem:
            raise SetupError(
                f"ComfyUI's torch could not be linked into the back end's environment ({problem.strerror}).",
                "use --torch own (a separate download), or on Windows switch developer mode on.",
            ) from problem


def _built_for(build: str, device: str) -> tuple[int, int] | None:
    match = re.search(rf"^{device}\b[^=\n]*=\s*['\"](\d+)\.(\d+)", build, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else None


def _numbers(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
