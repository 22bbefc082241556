"""The command ``tutti`` that the installer links into the user's folder of commands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tutti.backend.setup.command_link import commands_folder, offer_command
from tutti.backend.setup.runner import Runner

pytestmark = pytest.mark.skipif(os.name != "posix", reason="not Windows: links need rights there")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_BIN_HOME", raising=False)
    return tmp_path


def offer(home: Path, version: str = "1", *, dry_run: bool = False) -> tuple[Path, str]:
    """The executable that was offered, and what was said."""
    environments = home / "data" / "envs"
    executable = environments / version / "bin" / "tutti"
    executable.parent.mkdir(parents=True, exist_ok=True)
    executable.touch()
    said: list[str] = []
    offer_command(str(executable), environments, Runner(dry_run=dry_run, say=said.append))
    return executable, "\n".join(said)


def test_the_command_is_linked_and_follows_an_upgrade(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = home / ".local" / "bin" / "tutti"
    monkeypatch.setenv("PATH", str(link.parent))
    first, said = offer(home)
    assert link.readlink() == first
    assert str(link) in said
    first.unlink()  # its environment is gone
    second, _ = offer(home, "2")
    assert link.readlink() == second
    assert list(link.parent.iterdir()) == [link]


def test_where_the_folder_is_not_on_the_path_the_full_path_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    assert f'run: "{home}/.local/bin/tutti"' in offer(home)[1]


@pytest.mark.parametrize("kind", ["file", "link", "broken link", "folder"])
def test_what_is_not_ours_is_left_alone_and_the_full_path_is_said(home: Path, kind: str) -> None:
    link = home / ".local" / "bin" / "tutti"
    link.parent.mkdir(parents=True)
    stranger = home / "elsewhere"
    if kind == "file":
        link.write_text("theirs")
    elif kind == "folder":
        link.mkdir()
    else:
        link.symlink_to(stranger)
        if kind == "link":
            stranger.write_text("theirs")
    before = os.lstat(link)
    executable, said = offer(home)
    assert os.lstat(link) == before
    assert "left" in said
    assert str(executable) in said


def test_a_dry_run_says_what_would_be_linked_and_links_nothing(home: Path) -> None:
    executable, said = offer(home, dry_run=True)
    assert said == f"would link {home}/.local/bin/tutti to {executable}"
    assert not (home / ".local").exists()


def test_a_folder_that_cannot_be_written_does_not_undo_the_installation(home: Path) -> None:
    (home / ".local").write_text("a file")
    executable, said = offer(home)
    assert "cannot be made" in said
    assert str(executable) in said


def test_the_folder_is_the_stated_one_if_it_is_absolute(home: Path) -> None:
    assert commands_folder({"XDG_BIN_HOME": "/bin-home"}) == Path("/bin-home")
    assert commands_folder({"XDG_BIN_HOME": "relative"}) == home / ".local" / "bin"
