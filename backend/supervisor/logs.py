"""Log files: one set for every start, the last few kept."""

from __future__ import annotations

from pathlib import Path

KEPT = 5


def rotate(path: Path, kept: int = KEPT) -> None:
    """Move ``path`` to ``path.1``, that to ``path.2``, and so on; the oldest goes."""
    for number in range(kept - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if newer.exists():
            newer.replace(older)


def last_lines(path: Path, count: int = 5, longest: int = 2000) -> str:
    """The end of a log, for people."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - longest))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(line.rstrip() for line in text.splitlines()[-count:] if line.strip())
