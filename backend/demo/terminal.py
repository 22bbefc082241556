"""What the demo prints: one line per stage with its time, and a bar that moves on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_WIDTH = 28


class Terminal:
    """Prints stages; on a terminal the running one is redrawn in place."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self.times: list[tuple[str, float]] = []
        """Stage and seconds, in order."""

    def line(self, text: str = "") -> None:
        """Print one line."""
        self._clear()
        print(text, flush=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and print it with a tick when it is over."""
        start_s = time.monotonic()
        self.update(name)
        try:
            yield
        except BaseException:
            self._clear()  # what is said about it begins a line of its own
            raise
        elapsed_s = time.monotonic() - start_s
        self.times.append((name, elapsed_s))
        self.line(f"  ✓ {name:<44} {elapsed_s:6.2f} s")

    def update(self, text: str) -> None:
        """Redraw the running line. Not a terminal: nothing is printed."""
        if self._live:
            self._clear()
            print(f"  … {text}", end="", flush=True)

    def bar(self, name: str, done: int, total: int) -> None:
        """Redraw the running line as a progress bar."""
        filled = round(_WIDTH * done / max(total, 1))
        self.update(f"{name} [{'█' * filled}{'·' * (_WIDTH - filled)}] {done}/{total}")

    def _clear(self) -> None:
        if self._live:
            print("\r\x1b[2K", end="", flush=True)
