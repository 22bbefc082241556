"""The Unix socket of the daemon: this user's processes talk there, nobody else does, and what is said is what is said over TCP."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tutti.backend.broker.auth import Gate
from tutti.backend.broker.keys import AuthorizedKeys, KeyPair
from tutti.backend.client import Client
from tutti.backend.wire.connection import Connection, find_connection

from tests.security.attackers import null_sample, strike
from tests.support.daemon import Daemon

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells who is at the other end (SO_PEERCRED)"
)

NOBODY = 65534
needs_root = pytest.mark.skipif(
    os.geteuid() != 0,
    reason="becoming another user needs root: sudo .venv/bin/pytest tests/security/test_local_socket.py",
)
STRIKE = """
import os, sys
from tests.security.attackers import strike  # before the other user, who may read none of it
os.setgroups([]), os.setgid({uid}), os.setuid({uid})
print(strike(sys.argv[1], 3))
"""


def local_socket(daemon: Daemon) -> Path:
    path = find_connection(daemon.state_dir).local_socket
    assert path is not None
    return Path(path)


def strike_as(uid: int, endpoint: str) -> int:
    """Answers to three attempts of a process of another user."""
    tests = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", STRIKE.format(uid=uid), endpoint],
        capture_output=True, text=True, timeout=60, check=True, env={**os.environ, "PYTHONPATH": str(tests)},
    )  # fmt: skip
    return int(done.stdout)


def answer_over(connection: Connection) -> tuple[bytes, str]:
    """The latent of a job, and whether it went over the Unix socket or TCP."""
    with Client(connection, client_id="ab" * 16, software="test") as client:
        client.connect(timeout_s=10.0)
        message, tensors = null_sample(canary=b"same bytes ")
        answer = client.sample(message, tensors, lambda _: None)
        return bytes(answer.tensors["latent"].data), client.leg


def test_a_client_of_this_machine_takes_the_unix_socket_and_gets_what_it_gets_over_tcp(daemon: Daemon) -> None:
    connection = find_connection(daemon.state_dir)
    near, far = answer_over(connection), answer_over(replace(connection, local_socket=None))
    assert (near[1], far[1]) == ("ipc", "tcp")
    assert near[0] == far[0]


def test_a_client_that_cannot_see_the_socket_uses_tcp(daemon: Daemon, tmp_path: Path) -> None:
    """As in a container that has the state directory, but not the folder of the socket."""
    connection = find_connection(daemon.state_dir)
    plain_file = tmp_path / "clients"
    plain_file.touch()
    for path in (tmp_path / "nowhere", plain_file):
        assert answer_over(replace(connection, local_socket=str(path)))[1] == "tcp"


def test_the_socket_lies_where_only_this_user_can_enter(daemon: Daemon) -> None:
    folder = local_socket(daemon).parent.stat()
    assert (folder.st_uid, stat.S_IMODE(folder.st_mode)) == (os.geteuid(), 0o700)


@needs_root
def test_another_user_is_turned_away_even_where_the_folder_is_open(daemon: Daemon) -> None:
    path = local_socket(daemon)
    folders = [path.parent, *path.parent.parents]
    modes = {folder: folder.stat().st_mode for folder in folders}
    try:
        for folder in folders:
            folder.chmod(modes[folder] | 0o005)
        path.chmod(0o777)
        assert strike_as(NOBODY, f"ipc://{path}") == 0
        assert "turned away a connection of another user: run ComfyUI as" in daemon.log_text()
        assert strike(f"ipc://{path}", 3) == 3, "negative control: the same attack by this user is heard"
    finally:
        for folder, mode in modes.items():
            folder.chmod(stat.S_IMODE(mode))


@pytest.mark.parametrize(
    "address",
    [b"", b"127.0.0.1", b"localhost", b"localhost:", b"localhost:-1:0:1", b"localhost:x:0:1", b":%d" % os.geteuid()],
)
def test_whoever_the_kernel_does_not_vouch_for_is_shut_out(address: bytes, tmp_path: Path) -> None:
    local = KeyPair.make()
    gate = Gate(local, AuthorizedKeys(tmp_path))
    assert gate.user_of_process(address) is None
    assert gate.user_of_process(b"localhost:%d:0:1" % (os.geteuid() + 1)) is None
    assert gate.user_of_process(b"localhost:%d:0:1" % os.geteuid()) == local.public
