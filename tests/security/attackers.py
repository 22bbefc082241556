"""Attackers with real sockets, and honest jobs to compare them with."""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import zmq
from tutti.backend.wire import codec
from tutti.backend.wire.connection import Connection
from tutti.backend.wire.messages import Branch, Hello, ModelRef, Sample
from tutti.backend.wire.tensors import WireTensor

from tests.support.daemon import NULL_MODEL


def null_sample(
    *, steps: int = 2, canary: bytes = b"", model: str = NULL_MODEL
) -> tuple[Sample, dict[str, WireTensor]]:
    """A Sample for null ranks. ``canary`` stands in its noise."""
    message = Sample(
        job_id=secrets.token_hex(16), node_id="1", on=ModelRef(model=model, family="null", dtype="F32"), sampler="euler", cfg=1.0,
        timestep_multiplier=1.0, branches=(Branch(kind="positive"),), previews=False,
    )  # fmt: skip
    noise = (canary * 1024)[:1024].ljust(1024, b"\0")
    sigmas = struct.pack(f"<{steps + 1}f", *[1 - step / steps for step in range(steps + 1)])
    return message, {
        "noise": WireTensor(dtype="F32", shape=(1, 4, 8, 8), data=noise),
        "sigmas": WireTensor(dtype="F32", shape=(steps + 1,), data=sigmas),
    }


def attack_frames() -> list[list[bytes]]:
    """What an attacker says: hello, and a job."""
    message, tensors = null_sample()
    return [
        codec.encode(Hello(client_id="ee" * 16, software="attacker")),
        [bytes(frame) for frame in codec.encode(message, tensors)],
    ]


def strike(endpoint: str, attempts: int, **options: bytes) -> int:
    """Connect ``attempts`` times with these CURVE options and send; returns how many answers came."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets, answers = [], 0
    try:
        for _ in range(attempts):
            attacker = context.socket(zmq.DEALER)
            attacker.linger = 0
            for name, value in options.items():
                setattr(attacker, name, value)
            attacker.connect(endpoint)
            # A handshake that has failed already takes the connection away, and with it the place that a message could wait in.
            with contextlib.suppress(zmq.Again):
                for frames in attack_frames():
                    attacker.send_multipart(frames, zmq.DONTWAIT)
            sockets.append(attacker)
            if len(sockets) == 50:
                answers += _hear(sockets, 300)
        return answers + _hear(sockets, 1500)
    finally:
        context.destroy(linger=0)


def _hear(sockets: list[zmq.Socket[bytes]], patience_ms: int) -> int:
    poller = zmq.Poller()
    for attacker in sockets:
        poller.register(attacker, zmq.POLLIN)
    answered: set[object] = set()
    deadline_s = time.monotonic() + patience_ms / 1000
    while len(answered) < len(sockets) and (left_s := deadline_s - time.monotonic()) > 0:
        for attacker, _ in poller.poll(int(left_s * 1000)):
            answered.add(attacker)
            poller.unregister(attacker)
    answers = len(answered)
    for attacker in sockets:
        attacker.close()
    sockets.clear()
    return answers


@dataclass
class Eavesdropper:
    """A relay between a client and the daemon that writes down every byte."""

    endpoint: str
    heard: bytearray = field(default_factory=bytearray)


@contextmanager
def eavesdropping(connection: Connection) -> Iterator[Eavesdropper]:
    """Stand in the middle of one connection."""
    host, _, port = connection.endpoint.removeprefix("tcp://").rpartition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    spy = Eavesdropper(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    threads: list[threading.Thread] = []
    ends: list[socket.socket] = [listener]

    def relay(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                spy.heard += data
                target.sendall(data)
        except OSError:
            return

    def accept() -> None:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        far = socket.create_connection((host, int(port)))
        ends.extend((near, far))
        for pair in ((near, far), (far, near)):
            threads.append(threading.Thread(target=relay, args=pair))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield spy
    finally:
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        acceptor.join()
        for thread in threads:
            thread.join()
        for end in ends:
            end.close()
