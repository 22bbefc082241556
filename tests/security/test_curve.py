"""Only holders of a key talk to the daemon, nobody listens in, and an honest client with the wrong key is told so at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from tutti.backend.broker.keys import KeyPair
from tutti.backend.client import Client
from tutti.backend.errors import AuthFailed
from tutti.backend.wire.connection import Connection, find_connection, read_connection

from tests.security.attackers import eavesdropping, null_sample, strike
from tests.support.addresses import free_port
from tests.support.daemon import NULL_RANKS, TUTTI, Daemon, private_state_dir, running

ATTEMPTS = int(os.environ.get("TUTTI_ATTACKS", "150"))
TOLD_S = 2.0
CANARY = b"\xc0\xffee-canary-"


def tutti(state_dir: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line."""
    return subprocess.run(
        [str(TUTTI), *words, "--state-dir", str(state_dir)] if words[0] != "keys" else [str(TUTTI), "keys", "--state-dir", str(state_dir), *words[1:]],
        capture_output=True, text=True, timeout=60, check=False, cwd=cwd,
    )  # fmt: skip


def untouched(daemon: Daemon) -> bool:
    """No job of anybody ever reached the daemon's state machine."""
    status = daemon.status()
    return (status.queued, status.finished, status.failed, status.jobs) == (0, 0, 0, ())


@contextmanager
def client(connection: Connection) -> Iterator[Client]:
    with Client(connection, client_id="aa" * 16, software="test") as found:
        yield found


def test_nothing_from_a_socket_without_a_key_reaches_the_daemon(daemon: Daemon) -> None:
    assert strike(find_connection(daemon.state_dir).endpoint, ATTEMPTS) == 0
    assert untouched(daemon)


def strike_with(connection: Connection, attempts: int, *, server: str, public: str, secret: str) -> int:
    """Answers to attempts with these keys."""
    return strike(
        connection.endpoint,
        attempts,
        curve_serverkey=server.encode(),
        curve_publickey=public.encode(),
        curve_secretkey=secret.encode(),
    )


@pytest.mark.parametrize("public", ["a stranger's", "a known one"])
def test_nothing_reaches_the_daemon_from_who_does_not_hold_a_known_keys_secret(daemon: Daemon, public: str) -> None:
    """A key that nobody knows, and a known public key without its secret."""
    connection, stranger = find_connection(daemon.state_dir), KeyPair.make()
    shown = stranger.public if public == "a stranger's" else connection.client_public_key
    server = connection.server_public_key
    assert strike_with(connection, ATTEMPTS, server=server, public=shown, secret=stranger.secret) == 0
    assert untouched(daemon)
    if public == "a stranger's":
        assert "turned away a connection with a key that is not known" in daemon.log_text()


def test_a_good_key_says_nothing_to_a_server_that_is_not_ours(daemon: Daemon) -> None:
    connection, other = find_connection(daemon.state_dir), KeyPair.make().public
    public, secret = connection.client_public_key, connection.client_secret_key
    assert strike_with(connection, ATTEMPTS // 5, server=other, public=public, secret=secret) == 0
    assert untouched(daemon)


def test_the_same_attack_with_the_right_key_is_heard(daemon: Daemon) -> None:
    """Negative control: the attack is a real one."""
    connection = find_connection(daemon.state_dir)
    server, public = connection.server_public_key, connection.client_public_key
    assert strike_with(connection, 3, server=server, public=public, secret=connection.client_secret_key) == 3
    assert not untouched(daemon)


@pytest.mark.parametrize("wrong", ["client key", "server key"])
def test_an_honest_client_with_a_wrong_key_is_told_within_two_seconds(daemon: Daemon, wrong: str) -> None:
    connection, other = replace(find_connection(daemon.state_dir), local_socket=None), KeyPair.make()
    if wrong == "client key":
        connection = replace(connection, client_public_key=other.public, client_secret_key=other.secret)
    else:
        connection = replace(connection, server_public_key=other.public)
    began_s = time.monotonic()
    with client(connection) as misconfigured, pytest.raises(AuthFailed, match="connection file"):
        misconfigured.connect(timeout_s=10.0)
    assert time.monotonic() - began_s < TOLD_S


def test_nobody_in_between_can_read_a_job(daemon: Daemon) -> None:
    connection = find_connection(daemon.state_dir)
    with eavesdropping(connection) as spy:
        with client(replace(connection, endpoint=spy.endpoint, local_socket=None)) as honest:
            honest.connect()
            message, tensors = null_sample(canary=CANARY)
            answer = honest.sample(message, tensors, lambda _: None)
        assert bytes(answer.tensors["latent"].data).startswith(CANARY), "the job went through the relay"
        heard = bytes(spy.heard)
    assert len(heard) > 4096
    assert CANARY not in heard
    assert message.job_id.encode() not in heard
    assert b"null.safetensors" not in heard
    assert b"CURVE" in heard, "the handshake's greeting is what one can see"


def test_what_is_said_without_curve_can_be_read_in_between() -> None:
    """Negative control: the relay does hear."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server, plain = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    server.linger = plain.linger = 0
    server.rcvtimeo = 10_000
    port = server.bind_to_random_port("tcp://127.0.0.1")
    key = KeyPair.make()
    connection = Connection(
        endpoint=f"tcp://127.0.0.1:{port}",
        server_public_key=key.public,
        client_public_key=key.public,
        client_secret_key=key.secret,
    )
    with eavesdropping(connection) as spy:
        plain.connect(spy.endpoint)
        plain.send(CANARY)
        assert server.recv_multipart()[1] == CANARY
        assert CANARY in bytes(spy.heard)
        context.destroy(linger=0)


def test_a_key_for_another_machine_works_until_it_is_revoked(null_models: Path, tmp_path: Path) -> None:
    with private_state_dir() as state_dir:
        port = free_port()
        added = tutti(state_dir, "keys", "add", "box", "--address", f"127.0.0.1:{port}", cwd=tmp_path)
        assert added.returncode == 0, added.stderr
        file, other = tmp_path / "box.tutti.json", tmp_path / "other"
        other.mkdir()
        assert file.stat().st_mode & 0o777 == 0o600
        listen = ("--listen", f"127.0.0.1:{port}")
        with running(null_models, state_dir, ranks=1, arguments=(*NULL_RANKS, *listen)):
            with client(read_connection(file)) as remote:
                assert remote.connect().state in ("ready", "busy")
                remote.sample(*null_sample(), lambda _: None)
                assert tutti(state_dir, "keys", "revoke", "box").returncode == 0
                began_s = time.monotonic()
                with pytest.raises(AuthFailed, match="revoked"):
                    remote.status()
                assert time.monotonic() - began_s < TOLD_S
                again = tutti(state_dir, "keys", "add", "box", "--address", f"127.0.0.1:{port}", cwd=other)
                assert again.returncode == 0, again.stderr
                with client(read_connection(other / "box.tutti.json")) as replacement:
                    assert replacement.connect().state in ("ready", "busy")
                with pytest.raises(AuthFailed, match="revoked"):
                    remote.status()  # the old key's connection still stands; the name is not its any more
            with client(read_connection(file)) as remote, pytest.raises(AuthFailed):
                remote.connect(timeout_s=10.0)


def test_the_daemon_refuses_a_libzmq_with_known_holes(tmp_path: Path) -> None:
    """Run in a process of its own, where libzmq claims to be older than it is."""
    script = (
        "import sys, zmq\nzmq.zmq_version_info = lambda: (4, 3, 2)\n"
        "from tutti.backend.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    state = tmp_path / "s"
    done = subprocess.run(
        [sys.executable, "-c", script, "serve", "--device", "cpu", "--state-dir", str(state)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.match(r"tutti: Install pyzmq 26 or later .*4\.3\.5 is needed, this is 4\.3\.2\.\n$", done.stderr)
    assert not state.exists()
