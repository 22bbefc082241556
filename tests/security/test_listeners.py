"""Nobody beyond this machine can reach any process of a daemon: not the broker, not the launcher, not the ranks, not during a job."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from tutti.backend.errors import JobCancelled
from tutti.backend.wire.codec import Received
from tutti.backend.wire.messages import Progress

from tests.security.attackers import null_sample
from tests.support.daemon import NULL_NETWORK, Daemon, private_state_dir, running

STEPS = 10_000


@pytest.fixture(scope="module")
def real_ranks(null_models: Path) -> Iterator[Daemon]:
    """Two real ranks, torch and gloo and all, with a model that costs nothing."""
    with private_state_dir() as state_dir, running(null_models, state_dir, ranks=2, arguments=NULL_NETWORK) as daemon:
        yield daemon


def reachable_from_outside(processes: Iterable[psutil.Process]) -> list[str]:
    """What listens on an address that is not loopback, over TCP or UDP."""
    found = []
    for process in processes:
        for connection in process.net_connections(kind="inet"):
            listens = connection.status == psutil.CONN_LISTEN or (
                connection.type == socket.SOCK_DGRAM and not connection.raddr
            )
            address = ipaddress.ip_address(connection.laddr.ip) if connection.laddr else None
            if listens and address and not address.is_loopback:
                found.append(f"{' '.join(process.cmdline())[:80]}: {connection.laddr}")
    return found


def test_at_rest_only_loopback_is_listened_on(real_ranks: Daemon) -> None:
    assert len(real_ranks.tree) >= 4, "the daemon, the launcher and two ranks"
    assert reachable_from_outside(real_ranks.tree) == []


def test_during_a_job_only_loopback_is_listened_on(real_ranks: Daemon) -> None:
    looked: list[list[str]] = []

    def look(received: Received) -> None:
        message = received.message
        if isinstance(message, Progress) and message.phase == "sampling" and message.step > 5 and not looked:
            looked.append(reachable_from_outside(real_ranks.tree))

    def enough() -> None:
        if looked:
            raise KeyboardInterrupt  # the client cancels the job

    message, tensors = null_sample(steps=STEPS)
    with real_ranks.client() as client, pytest.raises((KeyboardInterrupt, JobCancelled)):
        client.sample(message, tensors, look, enough)
    assert looked == [[]]


def test_a_listener_on_every_interface_is_found() -> None:
    """Negative control: a process of ours that listens as torchrun's own stores do."""
    script = "import socket; s = socket.create_server(('', 0)); print('up', flush=True); import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(reachable_from_outside([psutil.Process(process.pid)])) == 1
    finally:
        process.kill()
        process.communicate()


def test_no_name_in_the_abstract_unix_space_is_used(real_ranks: Daemon) -> None:
    """Such sockets have no permissions: anybody on this machine could connect."""
    abstract = [
        connection.laddr
        for process in real_ranks.tree
        for connection in process.net_connections(kind="unix")
        if connection.laddr and not str(connection.laddr).startswith("/")
    ]
    assert abstract == []


def test_a_stranger_in_the_ranks_place_is_not_believed(real_ranks: Daemon) -> None:
    """Somebody of the same user who finds the socket, but not the incarnation's token."""
    import zmq
    from tutti.backend.wire import codec
    from tutti.backend.wire.messages import Failed, RankHello

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.linger = 1000
    stranger.connect(f"ipc://{real_ranks.state_dir}/run/ranks")
    hello = RankHello(
        token=secrets.token_hex(32),
        group_id=0,
        incarnation="0" * 32,
        rank=0,
        world_size=2,
        pid=1,
        device="cpu",
        transport="gloo",
    )
    try:
        stranger.send_multipart(codec.encode(hello))
        stranger.send_multipart(codec.encode(Failed(code="internal", message="x", job_id="0" * 32)))
        stranger.send_multipart([b"\x00" * 100, struct.pack("q", 1)])
        message, tensors = null_sample()
        with real_ranks.client() as client:
            client.sample(message, tensors, lambda _: None)
        assert stranger.poll(200) == 0
    finally:
        context.destroy()
    assert "turned a rank away" in real_ranks.log_text()
    assert real_ranks.status().restarts == 0
