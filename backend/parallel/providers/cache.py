"""Measured times of attention kernels on disk, so that a daemon measures each shape once and not once per start.

Times only: whether a kernel is right is found out anew by every process, because a wrong one would spoil pictures silently.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from .from_xfuser import DISTRIBUTIONS, installed

FOLDER_VARIABLE: Final = "TUTTI_CACHE_FOLDER"
"""Where a rank finds the daemon's cache directory; without it nothing is kept."""
_FORMAT: Final = 1

Times = Mapping[str, float]
"""Provider name -> milliseconds."""

log = logging.getLogger(__name__)


def versions(device: torch.device) -> dict[str, str]:
    """What decides how fast a kernel is, beside the shape."""
    found = {"format": str(_FORMAT), "torch": torch.__version__, "device": device.type}
    if installed():
        found |= {name: version for name in DISTRIBUTIONS if (version := _version(name)) is not None}
    if device.type == "cuda":
        found |= {
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "gpu": torch.cuda.get_device_name(device),
            "driver": _driver(),
        }
    return found


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str:
    """The NVIDIA driver's version, as the kernel tells it; empty where it does not."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").partition("\n")[0].strip()
    except OSError:
        return ""


class TimesCache:
    """A JSON file per set of versions: ``{"versions": {...}, "times": {case: {provider: ms}}}``."""

    def __init__(self, folder: Path | None, made_by: Mapping[str, str]) -> None:
        self._versions = dict(made_by)
        digest = hashlib.sha256(json.dumps(self._versions, sort_keys=True).encode()).hexdigest()[:16]
        self.path = None if folder is None else folder / f"attention-{digest}.json"

    @classmethod
    def of_this_process(cls, device: torch.device) -> TimesCache:
        """In the folder that the environment names."""
        folder = os.environ.get(FOLDER_VARIABLE)
        return cls(Path(folder) if folder else None, versions(device))

    def get(self, case: str) -> dict[str, float]:
        """The times of a case; empty when it was never measured, and when the file is not one of ours."""
        return self._read().get(case, {})

    def put(self, case: str, times: Times) -> None:
        """Keep the times of a case. A folder that cannot be written costs the next start a measurement, and a line in the log."""
        if self.path is None:
            return
        content = {"versions": self._versions, "times": {**self._read(), case: dict(times)}}
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.stem, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1, sort_keys=True)
            os.replace(name, self.path)
        except OSError as error:
            log.warning("cannot keep measured attention times: %s", error.strerror)

    def _read(self) -> dict[str, dict[str, float]]:
        if self.path is None:
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict) or content.get("versions") != self._versions:
            return {}
        kept = content.get("times")
        if not isinstance(kept, dict):
            return {}
        return {
            case: {name: float(ms) for name, ms in times.items() if isinstance(ms, int | float) and ms > 0}
            for case, times in kept.items()
            if isinstance(times, dict)
        }
