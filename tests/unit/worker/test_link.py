"""The rank's socket: tensors both ways, a look that never waits, and a broker that is lost once and for all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import zmq
from tutti.backend.errors import RemoteProtocolError
from tutti.backend.wire.codec import decode, encode
from tutti.backend.wire.messages import Cancel, Go, Preview
from tutti.backend.worker.link import BrokerLink, LinkLost
from tutti.backend.worker.tensors import to_torch, to_wire

JOB = "0" * 32


@contextlib.contextmanager
def connected(state_dir: Path) -> Iterator[tuple[BrokerLink, zmq.Socket[bytes]]]:
    context = zmq.Context()
    broker = context.socket(zmq.ROUTER)
    broker.linger = 0
    broker.bind(f"ipc://{state_dir}/s")
    link = BrokerLink(f"ipc://{state_dir}/s", b"rank-0")
    try:
        yield link, broker
    finally:
        link.close()
        broker.close()
        context.term()


def test_tensors_reach_the_broker_bit_for_bit(state_dir: Path) -> None:
    x0 = torch.randn(1, 16, 32, 32).to(torch.bfloat16)
    with connected(state_dir) as (link, broker):
        link.send(Preview(job_id=JOB, step=3), {"x0": to_wire(x0)})
        assert broker.poll(5000)
        identity, *frames = broker.recv_multipart(copy=False)
    received = decode([frame.buffer for frame in frames])
    assert identity.bytes == b"rank-0"
    assert received.message == Preview(job_id=JOB, step=3)
    assert torch.equal(to_torch(received.tensors["x0"]), x0)


def test_looking_for_a_message_never_waits_and_keeps_the_order(state_dir: Path) -> None:
    with connected(state_dir) as (link, broker):
        assert link.receive_now() is None
        link.send(Go(sequence=1))
        assert broker.poll(5000)
        broker.recv_multipart()
        for message in (Go(sequence=2), Cancel(job_id=JOB), Go(sequence=3)):
            broker.send_multipart([b"rank-0", *encode(message)])
        first = link.receive().message
        rest = []
        while len(rest) < 2:
            received = link.receive_now()
            if received is not None:
                rest.append(received.message)
        assert [first, *rest] == [Go(sequence=2), Cancel(job_id=JOB), Go(sequence=3)]


def test_bytes_that_are_no_message_are_an_error_of_the_broker(state_dir: Path) -> None:
    with connected(state_dir) as (link, broker):
        link.send(Go(sequence=1))
        assert broker.poll(5000)
        broker.send_multipart([b"rank-0", b"TUTTI\x01\x00\x00", b"\xff"])
        with pytest.raises(RemoteProtocolError):
            link.receive()


@pytest.mark.timeout(30)
def test_a_broker_that_closes_is_lost_but_its_last_word_is_heard(state_dir: Path) -> None:
    with connected(state_dir) as (link, broker):
        link.send(Go(sequence=1))
        assert broker.poll(5000)
        broker.send_multipart([b"rank-0", *encode(Go(sequence=2))])
        broker.close(1000)
        assert link.receive().message == Go(sequence=2)
        with pytest.raises(LinkLost):
            link.receive()


@pytest.mark.timeout(30)
def test_a_broker_that_is_not_there_is_lost_at_once(state_dir: Path) -> None:
    link = BrokerLink(f"ipc://{state_dir}/nobody", b"rank-0")
    try:
        with pytest.raises(LinkLost):
            link.receive()
    finally:
        link.close()
