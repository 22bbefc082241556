"""What runs below a test."""

from __future__ import annotations

import psutil

_OURS = ("tutti:", "tutti.")
"""How the title of a process of ours begins, or the module that it was started as. Not a folder: people call theirs ``tutti``."""


def our_children() -> list[psutil.Process]:
    """Daemons, launchers and ranks that this process or its children have started."""
    processes = psutil.Process().children(recursive=True)
    return [process for process in processes if any(word.startswith(_OURS) for word in process.cmdline())]
