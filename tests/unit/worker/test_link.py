"""The rank's socket: tensors both ways, a look that never waits, and a broker that is lost once and for all."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import zmq
from tutti.backend.errors import RemoteProtocolError
from tutti.backend.wire.codec import Received, decode, encode
from tutti.backend.wire.messages import Cancel, Go, Message, Preview
from tutti.backend.worker.link import BrokerLink, LinkLost
from tutti.backend.worker.tensors import to_torch, to_wire

JOB = "0" * 32


def receive(link: BrokerLink) -> Received:
    """The next message, which must come before any interruption."""
    received = link.receive()
    assert received is not None
    return received


class Connected:
    """A link, its broker, and what interrupts its waits."""

    def __init__(self, state_dir: Path, *, broker_is_there: bool = True) -> None:
        self.interrupt, watched = socket.socketpair()
        self._watched = watched
        self._context = zmq.Context()
        self.broker = self._context.socket(zmq.ROUTER)
        self.broker.linger = 0
        if broker_is_there:
            self.broker.bind(f"ipc://{state_dir}/s")
        self.link = BrokerLink(f"ipc://{state_dir}/s", b"rank-0", watched)

    def introduce(self) -> None:
        """Let the broker learn the rank's address."""
        self.link.send(Go(sequence=1))
        assert self.broker.poll(5000)
        self.broker.recv_multipart()

    def say(self, *messages: Message) -> None:
        """Send from the broker."""
        for message in messages:
            self.broker.send_multipart([b"rank-0", *encode(message)])

    def calm(self) -> None:
        """Take the interruption back."""
        self._watched.recv(1)

    def close(self) -> None:
        self.link.close()
        self.broker.close()
        self._context.term()
        self.interrupt.close()
        self._watched.close()


@pytest.fixture
def connected(state_dir: Path) -> Iterator[Connected]:
    made = Connected(state_dir)
    yield made
    made.close()


def test_tensors_reach_the_broker_bit_for_bit(connected: Connected) -> None:
    x0 = torch.randn(1, 16, 32, 32).to(torch.bfloat16)
    connected.link.send(Preview(job_id=JOB, step=3), {"x0": to_wire(x0)})
    assert connected.broker.poll(5000)
    identity, *frames = connected.broker.recv_multipart(copy=False)
    received = decode([frame.buffer for frame in frames])
    assert identity.bytes == b"rank-0"
    assert received.message == Preview(job_id=JOB, step=3)
    assert torch.equal(to_torch(received.tensors["x0"]), x0)


def test_looking_for_a_message_never_waits_and_keeps_the_order(connected: Connected) -> None:
    assert connected.link.receive_now() is None
    connected.introduce()
    connected.say(Go(sequence=2), Cancel(job_id=JOB), Go(sequence=3))
    messages = [receive(connected.link).message]
    deadline_s = time.monotonic() + 10
    while len(messages) < 3 and time.monotonic() < deadline_s:
        received = connected.link.receive_now()
        if received is not None:
            messages.append(received.message)
    assert messages == [Go(sequence=2), Cancel(job_id=JOB), Go(sequence=3)]


def test_waiting_can_be_interrupted_and_goes_on_afterwards(connected: Connected) -> None:
    connected.introduce()
    connected.interrupt.send(b"!")
    assert connected.link.receive() is None
    connected.calm()
    connected.say(Go(sequence=2))
    assert receive(connected.link).message == Go(sequence=2)


def test_bytes_that_are_no_message_are_an_error_of_the_broker(connected: Connected) -> None:
    connected.introduce()
    connected.broker.send_multipart([b"rank-0", b"TUTTI\x01\x00\x00", b"\xff"])
    with pytest.raises(RemoteProtocolError):
        connected.link.receive()


@pytest.mark.timeout(30)
def test_a_broker_that_closes_is_lost(connected: Connected) -> None:
    connected.introduce()
    connected.broker.close()
    with pytest.raises(LinkLost):
        connected.link.receive()


@pytest.mark.timeout(30)
def test_a_broker_that_is_not_there_is_lost_at_once(state_dir: Path) -> None:
    alone = Connected(state_dir, broker_is_there=False)
    try:
        with pytest.raises(LinkLost):
            alone.link.receive()
    finally:
        alone.close()
