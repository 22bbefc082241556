"""What stands on a terminal: the running line is redrawn in place, and is gone before anything else is said."""

from __future__ import annotations

import io

import pytest
from tutti.backend.demo.terminal import Terminal

CLEARED = "\r\x1b[2K"


class Screen(io.StringIO):
    """Fake: a terminal whose text is kept."""

    def isatty(self) -> bool:
        return True


def test_a_stage_that_fails_leaves_the_line_to_what_is_said_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    with pytest.raises(ValueError, match="x"), Terminal().stage("start a daemon"):
        raise ValueError("x")
    assert screen.getvalue().endswith(f"… start a daemon{CLEARED}")


def test_a_stage_that_succeeds_is_ticked_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    terminal = Terminal()
    with terminal.stage("start a daemon"):
        terminal.bar("drawing", 1, 4)
    *_, last = screen.getvalue().split(CLEARED)
    assert last.startswith("  ✓ start a daemon")
    assert last.endswith(" s\n")
    assert [name for name, _ in terminal.times] == ["start a daemon"]
