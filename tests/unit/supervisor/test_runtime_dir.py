"""The folder of a daemon's sockets: short, private, and never one that somebody else prepared."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tutti.backend.errors import ConnectionFileProblem
from tutti.backend.supervisor.runtime_dir import make_runtime_dir, runtime_dir
from tutti.backend.wire.connection import ensure_private_dir

SOMEBODY_ELSE = 54321
"""A user id that nobody has."""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory whose path is unfit for sockets: the runtime folder lies in the temporary folder, which others share."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    path = tmp_path / "with space"
    path.mkdir(mode=0o700)
    assert runtime_dir(path).parent == Path(tempfile.gettempdir())
    yield path
    found = runtime_dir(path)
    if found.is_symlink() or found.is_file():
        found.unlink()
    shutil.rmtree(found, ignore_errors=True)


def test_it_is_in_the_state_directory_where_that_is_short() -> None:
    assert runtime_dir(Path("/tmp/s")) == Path("/tmp/s/run")


@pytest.mark.parametrize("name", ["x" * 90, "with space", "q?a#b", "caf\u00e9", "per%cent"])
def test_elsewhere_it_is_short_private_and_the_same_every_time(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    state = tmp_path / name
    state.mkdir()
    path = make_runtime_dir(state)
    try:
        assert len(os.fsencode(path / "ranks")) < 100
        assert path == runtime_dir(state)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert runtime_dir(tmp_path / (name + "2")) != path
    finally:
        path.rmdir()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_it_is_private_whatever_the_umask(state: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = make_runtime_dir(state)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o700


def test_what_a_killed_daemon_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "run" / "stores").mkdir(parents=True)
    (tmp_path / "run" / "ranks").write_text("")
    path = make_runtime_dir(tmp_path)
    assert list(path.iterdir()) == []


def test_a_folder_of_ours_that_others_could_enter_is_made_anew(state: Path) -> None:
    runtime_dir(state).mkdir()
    runtime_dir(state).chmod(0o777)
    (runtime_dir(state) / "clients").write_text("put here by somebody")
    path = make_runtime_dir(state)
    assert (list(path.iterdir()), stat.S_IMODE(path.lstat().st_mode)) == ([], 0o700)


def test_a_link_under_its_name_is_refused_and_not_followed(state: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.mkdir(mode=0o700)
    (ours / "precious").write_text("x")
    runtime_dir(state).symlink_to(ours)
    with pytest.raises(ConnectionFileProblem, match=r"^Have .* removed by its owner, or give a state directory"):
        make_runtime_dir(state)
    assert [path.name for path in ours.iterdir()] == ["precious"]
    # Negative control: whoever follows links takes the folder behind it for a good one.
    assert ensure_private_dir(runtime_dir(state)) == runtime_dir(state)


def test_a_link_to_nowhere_is_refused_and_nothing_is_made_behind_it(state: Path, tmp_path: Path) -> None:
    runtime_dir(state).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConnectionFileProblem):
        make_runtime_dir(state)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_under_its_name_is_refused(state: Path) -> None:
    runtime_dir(state).write_text("x")
    with pytest.raises(ConnectionFileProblem):
        make_runtime_dir(state)
    assert runtime_dir(state).read_text() == "x"


def test_a_folder_of_another_user_is_refused_and_left_alone(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given away for real where the tests run as root; elsewhere this process takes itself for another user."""
    path = runtime_dir(state)
    path.mkdir(mode=0o700)
    (path / "bait").write_text("x")
    if os.geteuid() == 0:
        os.chown(path, SOMEBODY_ELSE, SOMEBODY_ELSE)
    else:
        monkeypatch.setattr("os.geteuid", lambda: SOMEBODY_ELSE)
        monkeypatch.setattr(
            "tutti.backend.supervisor.runtime_dir.runtime_dir", lambda _: path
        )  # its name has the user's number
    with pytest.raises(ConnectionFileProblem):
        make_runtime_dir(state)
    assert (path / "bait").read_text() == "x"


def test_a_folder_that_is_exchanged_while_it_is_made_is_refused(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder without the sticky bit others may rename what is ours."""
    (tmp_path / "theirs").mkdir(mode=0o700)
    mkdir = Path.mkdir

    def exchanged(path: Path, *arguments: object, **options: object) -> None:
        mkdir(path, *arguments, **options)  # type: ignore[arg-type]
        if path == runtime_dir(state):
            path.rmdir()
            path.symlink_to(tmp_path / "theirs")

    monkeypatch.setattr(Path, "mkdir", exchanged)
    with pytest.raises(ConnectionFileProblem):
        make_runtime_dir(state)
