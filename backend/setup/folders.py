"""Where installed back ends live: the user's data folder, by the platform's convention.

The pack's own folder is no place for an environment: updates may wipe it. The pointer file ``current.json`` in the data folder's root
names the environment in use; the installer switches it atomically.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

POINTER = "current.json"


def data_folder(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Linux: ``$XDG_DATA_HOME/tutti`` (``~/.local/share/tutti``); macOS: ``~/Library/Application Support/tutti``; Windows: ``%LOCALAPPDATA%\\tutti``."""
    home = Path.home()
    if platform == "win32":
        return Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "tutti"
    if platform == "darwin":
        return home / "Library" / "Application Support" / "tutti"
    stated = environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a relative path is invalid and is to be ignored.
    return (Path(stated) if os.path.isabs(stated) else home / ".local" / "share") / "tutti"


@dataclass(frozen=True, kw_only=True)
class Current:
    """The contents of the pointer file."""

    executable: str
    """The ``tutti`` command of the environment in use."""
    version: str
    """Version of Tutti in it."""


def read_current(folder: Path) -> Current | None:
    """The environment in use, or None: nothing installed, the file damaged, or its command gone."""
    try:
        fields = json.loads((folder / POINTER).read_text(encoding="utf-8"))
        current = Current(executable=str(fields["executable"]), version=str(fields["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return current if os.path.isfile(current.executable) else None


def write_current(folder: Path, current: Current) -> None:
    """Switch atomically: a reader sees the old pointer or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{POINTER}.{os.getpid()}"
    draft.write_text(json.dumps(asdict(current), indent=2) + "\n", encoding="utf-8")
    os.replace(draft, folder / POINTER)
