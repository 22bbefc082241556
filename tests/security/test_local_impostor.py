"""Where a client looks for its daemon's Unix socket, another one listens, or the daemon turns it away: it goes over TCP, or says what to do."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from tutti.backend.broker.auth import Gate, ZapHandler, make_local_server
from tutti.backend.broker.keys import AuthorizedKeys, KeyPair
from tutti.backend.client import Client
from tutti.backend.errors import AuthFailed
from tutti.backend.wire import codec
from tutti.backend.wire.connection import Connection, find_connection
from tutti.backend.wire.messages import Welcome

from tests.security.attackers import strike
from tests.security.test_local_socket import NOBODY, needs_root
from tests.support.daemon import Daemon

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux does a daemon listen at a Unix socket")

IMPOSTOR = """
import os, sys, zmq
uid = int(sys.argv[1])
os.setgroups([]), os.setgid(uid), os.setuid(uid)
context = zmq.Context()
listener = context.socket(zmq.ROUTER)
listener.bind("ipc://clients")
print("listens", flush=True)
heard, poller = 0, zmq.Poller()
poller.register(listener, zmq.POLLIN), poller.register(sys.stdin, zmq.POLLIN)
while sys.stdin.fileno() not in (ready := dict(poller.poll())):
    if listener in ready:
        peer, *_ = listener.recv_multipart()
        listener.send_multipart([peer, b"give me your pictures"])
        heard += 1
print(heard)
context.destroy(linger=0)
"""
"""Listens in its working directory, which it need not be able to find, and answers whoever comes."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """0700, with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="s") as path:
        yield Path(path)


@contextlib.contextmanager
def impostor(folder: Path, heard: list[int]) -> Iterator[None]:
    """Another user listens at ``folder/clients``; in the end ``heard`` says how many messages came."""
    command = [sys.executable, "-c", IMPOSTOR, str(NOBODY)]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        try:
            yield
        finally:
            process.stdin.close()
            heard.append(int(process.stdout.read()))


def reached_by(connection: Connection) -> str:
    """The leg over which the daemon answers."""
    with Client(connection, client_id="ab" * 16, software="test") as client:
        client.connect(timeout_s=10.0)
        assert client.status().state in ("ready", "busy")
        return client.leg


def give_away(folder: Path) -> None:
    """As if the name had been free in /tmp, and another user had taken it."""
    os.chown(folder, NOBODY, NOBODY)


def leave_open(folder: Path) -> None:
    """A folder of ours in which another user could make a socket."""
    folder.chmod(0o777)


def close_too_late(folder: Path) -> None:
    """Private now, but it was not when another user made a socket in it."""
    folder.chmod(0o777)


@needs_root
@pytest.mark.parametrize("prepare", [give_away, leave_open, close_too_late])
def test_a_client_says_nothing_to_a_socket_that_another_user_made(
    prepare: Callable[[Path], None], daemon: Daemon, folder: Path
) -> None:
    heard: list[int] = []
    prepare(folder)
    connection = replace(find_connection(daemon.state_dir), local_socket=str(folder / "clients"))
    with impostor(folder, heard):
        if prepare is close_too_late:
            folder.chmod(0o700)
        assert reached_by(connection) == "tcp"
    assert heard == [0]
    (folder / "clients").unlink(missing_ok=True)
    folder.chmod(0o777)
    with impostor(folder, heard):
        assert strike(f"ipc://{folder}/clients", 1) == 1, "negative control: the impostor does listen and answer"
    assert heard[1] > 0


def test_a_unix_socket_that_was_lost_is_not_used_again(daemon: Daemon, folder: Path) -> None:
    """Whoever listens there now was not looked at."""
    real = find_connection(daemon.state_dir)
    with Client(real, client_id="ab" * 16, software="test") as client:
        welcome = client.connect(timeout_s=10.0)
    endpoint = f"ipc://{folder}/clients"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    first, second, careless = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    first.bind(endpoint)
    try:
        careless.connect(endpoint)
        careless.send(b"first")
        assert first.recv_multipart()[1] == b"first"
        with Client(replace(real, local_socket=f"{folder}/clients"), client_id="cd" * 16, software="test") as client:
            welcoming = threading.Thread(target=answer_with, args=(first, welcome))
            welcoming.start()
            client.connect(timeout_s=10.0)
            welcoming.join()
            assert client.leg == "ipc"
            first.close()
            second.bind(endpoint)
            assert client.status().state in ("ready", "busy")
            assert client.leg == "tcp"
            careless.send(b"again")
            assert second.poll(10_000), "negative control: a socket that libzmq connects again does speak to it"
            assert second.recv_multipart()[1] == b"again"
            assert client.status().state in ("ready", "busy")
            assert not second.poll(300)
    finally:
        context.destroy(linger=0)


def answer_with(listener: zmq.Socket[bytes], welcome: Welcome) -> None:
    """What a daemon does once."""
    peer, *_ = listener.recv_multipart()
    listener.send_multipart([peer, *codec.encode(welcome)])


class GateForNobody(Gate):
    """As where the kernel's word about the other end is missing, or names another user."""

    def user_of_process(self, address: bytes) -> str | None:
        return None


@contextlib.contextmanager
def turning_away(folder: Path) -> Iterator[list[bytes]]:
    """The daemon's Unix socket with the ZAP handler behind it, who lets nobody in; yields what came through all the same."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    zap = ZapHandler(context, GateForNobody(KeyPair.make(), AuthorizedKeys(folder)))
    listener, came, ends = context.socket(zmq.ROUTER), [], threading.Event()
    make_local_server(listener)
    listener.bind(f"ipc://{folder}/clients")

    def serve() -> None:
        while not ends.is_set():
            if zap.socket.poll(20):
                zap.answer()
            if listener.poll(0):
                came.append(listener.recv_multipart()[-1])
        zap.close()
        listener.close(0)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield came
    finally:
        ends.set()
        thread.join()
        context.term()


def test_who_is_turned_away_at_the_unix_socket_goes_over_tcp(daemon: Daemon, folder: Path) -> None:
    connection = replace(find_connection(daemon.state_dir), local_socket=f"{folder}/clients")
    with turning_away(folder) as came:
        assert reached_by(connection) == "tcp"
    assert came == []


def test_who_is_turned_away_and_finds_no_tcp_either_is_told_what_to_do(daemon: Daemon, folder: Path) -> None:
    """A new connection file would not help: what is wrong is the user."""
    real = find_connection(daemon.state_dir)
    with socket.create_server(("127.0.0.1", 0)) as mute, turning_away(folder):
        nowhere = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        other = KeyPair.make()
        for connection in (
            replace(real, endpoint=nowhere),
            replace(real, client_public_key=other.public, client_secret_key=other.secret),
        ):
            lost = replace(connection, local_socket=f"{folder}/clients")
            with Client(lost, client_id="ab" * 16, software="test") as client, pytest.raises(AuthFailed) as refused:
                client.connect(timeout_s=2.0)
            assert refused.value.message.startswith("Run ComfyUI as the user who runs the daemon, or connect over TCP")
            assert "connection file" not in refused.value.message


def test_trying_the_socket_leaves_the_daemon_unmoved(daemon: Daemon) -> None:
    """Connections that end before they say anything: nobody is turned away, nothing is logged, and work goes on."""
    connection = find_connection(daemon.state_dir)
    before = daemon.log_text()
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as trial:
            trial.connect(str(connection.local_socket))
    assert reached_by(connection) == "ipc"
    assert daemon.log_text() == before
    assert strike(f"ipc://{connection.local_socket}", 1) == 1
