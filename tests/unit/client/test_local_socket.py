"""Which Unix sockets a client takes for its daemon's. Real sockets in real folders."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tutti.backend.client.local_socket import is_usable

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Unix sockets: not Windows")


@pytest.fixture
def folder() -> Iterator[Path]:
    """0700, with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="s"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def listener(folder: Path) -> Iterator[socket.socket]:
    """What a daemon has there."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "clients"))
        listening.listen()
        yield listening


def test_a_socket_of_ours_in_a_private_folder_of_ours_is_taken(folder: Path, listener: socket.socket) -> None:
    assert is_usable(str(folder / "clients"))
    taken, _ = listener.accept()
    with taken:
        taken.settimeout(5.0)
        assert taken.recv(1) == b"", "the trial ends by itself"


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o710, 0o701, 0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_use_is_not(folder: Path, listener: socket.socket, mode: int) -> None:
    folder.chmod(mode)
    assert not is_usable(str(folder / "clients"))


def test_what_belongs_to_another_user_is_not(
    folder: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_user = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: another_user)
    assert not is_usable(str(folder / "clients"))


def plain_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def link_to_socket(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "clients")
    return folder / "link"


def link_to_folder(folder: Path) -> Path:
    (folder / "link").symlink_to(folder)
    return folder / "link" / "clients"


def left_by_a_killed_daemon(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(folder / "left"))
    return folder / "left"


def datagrams(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(folder / "datagrams"))
    return folder / "datagrams"


@pytest.mark.parametrize(
    "make",
    [plain_file, link_to_socket, link_to_folder, left_by_a_killed_daemon, datagrams, lambda f: f / "no" / "clients"],
)
def test_what_is_no_socket_that_somebody_listens_at_is_not(
    folder: Path, listener: socket.socket, make: Callable[[Path], Path]
) -> None:
    assert not is_usable(str(make(folder)))


def test_a_listener_with_a_full_backlog_costs_no_wait(folder: Path) -> None:
    waiting = []
    try:
        with socket.socket(socket.AF_UNIX) as busy:
            busy.bind(str(folder / "busy"))
            busy.listen(0)
            for _ in range(3):
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(str(folder / "busy"))
            assert not is_usable(str(folder / "busy"))
    finally:
        for one in waiting:
            one.close()
