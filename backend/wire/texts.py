"""Texts for people that are made of parts, in fields of bounded length: what a rank says about itself, and the broker puts together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

SEPARATOR: Final = "; "
CUT: Final = " …"


def joined(parts: Iterable[str], length: int) -> str:
    """The parts as one text of at most ``length`` characters, which :func:`parts_of` takes apart again."""
    return shortened(SEPARATOR.join(part.replace(SEPARATOR, ", ") for part in parts), length)


def parts_of(text: str) -> list[str]:
    """What was joined; the last part as far as there was room for it."""
    return text.split(SEPARATOR) if text else []


def size_text(size_bytes: float) -> str:
    """``12.3 MB``: three digits or so, powers of 1000."""
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"


def shortened(text: str, length: int) -> str:
    """``text``, with an ellipsis at its end where it is longer than ``length`` characters."""
    return text if len(text) <= length else text[: length - len(CUT)].rstrip() + CUT
