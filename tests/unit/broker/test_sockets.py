"""The broker's sockets with real peers: slow ones, vanished ones, and frames that are passed on without a copy."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq
from tutti.backend.broker.auth import Gate, ZapHandler
from tutti.backend.broker.keys import AuthorizedKeys, KeyPair
from tutti.backend.broker.sockets import (
    CLIENT_SEND_MARK,
    DROPPED,
    IO_THREADS,
    OUTBOX_BYTES,
    OUTBOX_MESSAGES,
    ClientSocket,
    RankSocket,
    sendable,
)
from tutti.backend.errors import Busy
from tutti.backend.wire import codec
from tutti.backend.wire.messages import Failed
from zmq.utils.garbage import gc as garbage

from tests.support.addresses import needs_ipv6

DEADLINE_S = 20.0
MEGABYTE = 1024**2
NOTICE_BYTES = sum(memoryview(frame).nbytes for frame in codec.encode(DROPPED))


@dataclass
class Stage:
    """A broker's client socket, its ZAP handler in a thread, and what clients need."""

    clients: ClientSocket
    endpoint: str
    server: KeyPair
    local: KeyPair
    context: zmq.Context[zmq.Socket[bytes]]
    opened: list[zmq.Socket[bytes]] = field(default_factory=list)

    def connect(self, **options: int) -> zmq.Socket[bytes]:
        """A client's socket."""
        socket = self.context.socket(zmq.DEALER)
        socket.linger = 0
        socket.rcvtimeo = int(DEADLINE_S * 1000)
        for name, value in options.items():
            setattr(socket, name, value)
        socket.curve_serverkey = self.server.public.encode()
        socket.curve_publickey, socket.curve_secretkey = self.local.public.encode(), self.local.secret.encode()
        socket.connect(self.endpoint)
        self.opened.append(socket)
        return socket

    def first(self) -> tuple[bytes, str | None, list[zmq.Frame]]:
        """The first message that comes."""
        assert wait_for(lambda: self.clients.socket.poll(20) > 0)
        return next(iter(self.clients.receive()))


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture
def stage(state_dir: Path) -> Iterator[Stage]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server, local, over = KeyPair.make(), KeyPair.make(), threading.Event()
    zap = ZapHandler(context, Gate(local, AuthorizedKeys(state_dir)))

    def answer() -> None:
        while not over.is_set():
            if zap.socket.poll(20):
                zap.answer()
        zap.close()

    thread = threading.Thread(target=answer)
    thread.start()
    clients = ClientSocket(context, server)
    built = Stage(clients, clients.bind("tcp://127.0.0.1:*"), server, local, context)
    try:
        yield built
    finally:
        over.set()
        thread.join()
        context.destroy(linger=0)
        garbage.stop()  # pyzmq's own thread for buffers that are sent without a copy


def test_a_message_carries_the_key_that_sent_it(stage: Stage) -> None:
    client = stage.connect()
    client.send_multipart([b"one", b"two"])
    peer, user, frames = stage.first()
    assert (user, [frame.bytes for frame in frames]) == (stage.local.public, [b"one", b"two"])
    stage.clients.send(peer, [b"answer"])
    assert client.recv_multipart() == [b"answer"]


@needs_ipv6
def test_one_socket_listens_at_ipv4_and_ipv6_addresses(stage: Stage) -> None:
    six, four = stage.clients.bind("tcp://[::1]:*"), stage.clients.bind("tcp://127.0.0.1:*")
    assert re.fullmatch(r"tcp://\[::1\]:\d+", six)
    assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", four), "not as an address that is mapped into IPv6"
    for endpoint in (six, four):
        stage.endpoint = endpoint
        client = stage.connect(ipv6=int(endpoint == six))
        client.send(b"hello")
        peer, user, _ = stage.first()
        assert user == stage.local.public
        stage.clients.send(peer, [b"answer"])
        assert client.recv() == b"answer"


def test_a_frame_that_came_from_a_socket_goes_out_as_the_same_message(stage: Stage) -> None:
    client = stage.connect()
    client.send_multipart([b"x" * MEGABYTE])
    peer, _, frames = stage.first()
    view = memoryview(frames[0])
    assert sendable([view]) == [frames[0]]
    assert sendable([view[1:], b"bytes"]) == [view[1:], b"bytes"], "a part of a message is not the message"
    stage.clients.send(peer, [view])
    assert client.recv() == b"x" * MEGABYTE


def test_a_client_that_does_not_read_gets_everything_in_order_when_it_does(stage: Stage) -> None:
    client = stage.connect(rcvhwm=1, rcvbuf=4096)
    client.send(b"hello")
    peer, _, _ = stage.first()
    count = CLIENT_SEND_MARK + 60
    before_s = time.monotonic()
    for number in range(count):
        stage.clients.send(peer, [number.to_bytes(4, "big"), bytes(MEGABYTE // 4)])
    assert time.monotonic() - before_s < 5.0, "sending never waits for a reader"
    assert stage.clients.has_waiting
    received = []
    while len(received) < count:
        received.append(int.from_bytes(client.recv_multipart()[0], "big"))
        stage.clients.flush()
    assert received == list(range(count))
    assert not stage.clients.has_waiting


def stalled(stage: Stage) -> tuple[zmq.Socket[bytes], bytes]:
    """A client that reads nothing, with as much waiting for it as libzmq takes."""
    client = stage.connect(rcvhwm=1, rcvbuf=4096)
    client.send(b"hello")
    peer, _, _ = stage.first()
    sent = 0
    while not stage.clients.has_waiting:
        stage.clients.send(peer, [bytes(MEGABYTE // 4)])
        sent += 1
        assert sent < 4096
    return client, peer


def test_an_older_progress_is_replaced_by_a_newer_one_and_results_are_not(stage: Stage) -> None:
    client, peer = stalled(stage)
    for step in range(10):
        stage.clients.send(peer, [b"progress", bytes([step])], replaces="job")
    stage.clients.send(peer, [b"result"])
    heard = []
    while heard[-1:] != [[b"result"]]:
        message = client.recv_multipart()
        if len(message[0]) < 100:
            heard.append(message)
        stage.clients.flush()
    assert heard == [[b"progress", bytes([9])], [b"result"]]


def test_what_waits_for_a_client_is_bounded_and_dropped_with_it(stage: Stage) -> None:
    _, peer = stalled(stage)
    waiting_before = messages_held(stage, peer)
    lost = [stage.clients.send(peer, [b"answer"], answers=str(number)) for number in range(OUTBOX_MESSAGES)]
    full_at = OUTBOX_MESSAGES - waiting_before
    assert lost[full_at] == [str(number) for number in range(full_at + 1)], "every one, not the last one only"
    assert lost.count([]) == OUTBOX_MESSAGES - 1
    assert messages_held(stage, peer) <= OUTBOX_MESSAGES
    stage.clients.forget(peer)
    assert not stage.clients.has_waiting


def messages_held(stage: Stage, peer: bytes) -> int:
    return len(stage.clients._outbox[peer].waiting)


def bytes_held(stage: Stage, peer: bytes) -> int:
    """Counted anew, whatever the socket believes."""
    return sum(memoryview(frame).nbytes for item in stage.clients._outbox[peer].waiting for frame in item.frames)


def test_what_waits_for_a_client_is_bounded_in_bytes_and_whoever_sent_too_much_is_told(stage: Stage) -> None:
    _, peer = stalled(stage)
    piece = OUTBOX_BYTES // 8
    lost = []
    for number in range(12):
        lost.append(stage.clients.send(peer, [b"head", bytes(piece)], answers=str(number)))
        assert bytes_held(stage, peer) <= OUTBOX_BYTES + NOTICE_BYTES
    assert [ids for ids in lost if ids] == [[str(number) for number in range(8)]], (
        "what did not fit was not delivered, and its sender must know it: a result stays kept"
    )
    assert messages_held(stage, peer) < 8, "it was far below the bound of messages"


def hear_until(client: zmq.Socket[bytes], stage: Stage, last: list[bytes]) -> list[list[bytes]]:
    """What the client reads after it was stalled, up to ``last``."""
    heard: list[list[bytes]] = []
    while heard[-1:] != [last]:
        message = client.recv_multipart()
        if len(message[0]) < 100_000:
            heard.append(message)
        stage.clients.flush()
    return heard


def test_a_client_whose_answers_were_dropped_reads_that_in_their_place_and_then_what_came_after(stage: Stage) -> None:
    client, peer = stalled(stage)
    stage.clients.send(peer, [b"failed"])
    assert stage.clients.send(peer, [b"large", bytes(OUTBOX_BYTES)], answers="job") == ["job"]
    stage.clients.send(peer, [b"after"])
    notice, after = hear_until(client, stage, [b"after"])
    received = codec.decode([zmq.Frame(frame) for frame in notice])
    assert isinstance(received.message, Failed)
    assert (received.message.code, received.message.job_id, received.message.request) == (Busy.code, None, None)
    assert after == [b"after"]


def test_what_may_be_lost_goes_first_and_costs_no_answer_its_place(stage: Stage) -> None:
    client, peer = stalled(stage)
    stage.clients._outbox[peer].lose()
    assert stage.clients.send(peer, [b"answer"], answers="one") == []
    for job in range(4):
        assert stage.clients.send(peer, [b"progress", bytes(OUTBOX_BYTES // 4)], replaces=str(job)) == []
    assert stage.clients.send(peer, [b"result", bytes(OUTBOX_BYTES // 2)], answers="two") == []
    assert stage.clients.send(peer, [b"progress", bytes(OUTBOX_BYTES)], replaces="5") == []
    stage.clients.send(peer, [b"last"])
    assert [message[0] for message in hear_until(client, stage, [b"last"])] == [b"answer", b"result", b"last"]


def test_the_answers_that_waited_for_a_client_that_vanished_are_named(stage: Stage) -> None:
    client, peer = stalled(stage)
    stage.clients.send(peer, [b"result"], answers="one")
    stage.clients.send(peer, [b"result"], answers="two")
    client.close()
    lost: list[str] = []

    def is_gone() -> bool:
        stage.clients.socket.poll(5)
        lost.extend(stage.clients.flush())
        return not stage.clients.has_waiting

    assert wait_for(is_gone)
    assert lost == ["one", "two"]


def test_the_answers_of_a_client_that_is_given_up_are_named(stage: Stage) -> None:
    _, peer = stalled(stage)
    stage.clients.send(peer, [b"result"], answers="one")
    assert stage.clients.forget(peer) == ["one"]
    assert stage.clients.forget(peer) == []


def test_a_message_larger_than_the_bound_is_delivered_when_nothing_else_waits(stage: Stage) -> None:
    client, peer = stalled(stage)
    stage.clients._outbox[peer] = type(stage.clients._outbox[peer])()
    assert stage.clients.send(peer, [b"large", bytes(OUTBOX_BYTES + 1)], answers="one") == []
    assert stage.clients.send(peer, [b"one more"], answers="two") == ["one", "two"], "and nothing waits behind it"
    assert stage.clients.send(peer, [b"large", bytes(OUTBOX_BYTES + 1)], answers="one") == []
    last: list[bytes] = []
    while last[:1] != [b"large"]:
        last = client.recv_multipart()
        stage.clients.flush()
    assert len(last[1]) == OUTBOX_BYTES + 1


def test_bytes_that_were_taken_or_replaced_count_no_longer(stage: Stage) -> None:
    client, peer = stalled(stage)
    for step in range(100):
        stage.clients.send(peer, [bytes([step]), bytes(OUTBOX_BYTES // 8)], replaces="job")
        assert bytes_held(stage, peer) >= OUTBOX_BYTES // 8
    assert stage.clients._outbox[peer].size_bytes == bytes_held(stage, peer) <= OUTBOX_BYTES // 4
    while stage.clients.has_waiting:
        client.recv_multipart()
        stage.clients.flush()
    assert stage.clients.send(peer, [b"again", bytes(OUTBOX_BYTES)], answers="job") == []


def test_a_preview_is_not_sent_to_a_client_that_has_results_waiting(stage: Stage) -> None:
    _, peer = stalled(stage)
    assert stage.clients.send_tracked(peer, [b"head", bytes(1000)]) is None


def test_it_is_known_when_a_preview_has_left_and_when_it_has_not(stage: Stage) -> None:
    reader = stage.connect()
    reader.send(b"hello")
    peer, _, _ = stage.first()
    has_left = stage.clients.send_tracked(peer, [b"head", bytes(MEGABYTE)])
    assert has_left is not None
    assert len(reader.recv_multipart()[1]) == MEGABYTE
    assert wait_for(has_left)
    sleeper = stage.connect(rcvhwm=1, rcvbuf=4096)
    sleeper.send(b"hello")
    peer, _, _ = stage.first()
    checks = [stage.clients.send_tracked(peer, [b"head", bytes(MEGABYTE)]) for _ in range(40)]
    assert not wait_for_a_moment(lambda: all(check is not None and check() for check in checks))


def wait_for_a_moment(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + 0.5
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_a_message_to_somebody_who_is_gone_is_nobodys_problem(stage: Stage) -> None:
    assert stage.clients.send(b"nobody", [b"x"], answers="job") == ["job"], "the broker must know, to keep a result"
    assert stage.clients.send(b"nobody", [b"x"]) == []
    assert stage.clients.send_tracked(b"nobody", [b"head", b"x"]) is not None
    assert not stage.clients.has_waiting


def test_a_frame_larger_than_any_tensor_never_arrives_and_ends_the_connection(stage: Stage) -> None:
    small = ClientSocket(stage.context, stage.server)
    small.socket.maxmsgsize = 1000
    stage.endpoint = small.bind("tcp://127.0.0.1:*")
    client = stage.connect()
    client.send(b"before")
    assert wait_for(lambda: small.socket.poll(20) > 0)
    ((first, _, frames),) = list(small.receive())
    assert frames[0].bytes == b"before"
    client.send(bytes(2000))

    def fits_at_last() -> bool:
        client.send(b"fits")
        return small.socket.poll(100) > 0

    assert wait_for(fits_at_last)
    peer, _, frames = next(iter(small.receive()))
    assert (frames[0].bytes, peer != first) == (b"fits", True)
    small.close()


def test_ranks_are_heard_and_spoken_to_by_their_identity(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(IO_THREADS)
    ranks = RankSocket(context)
    endpoint = f"ipc://{tmp_path}/r"
    ranks.bind(endpoint)
    rank = context.socket(zmq.DEALER)
    rank.linger, rank.rcvtimeo, rank.identity = 0, int(DEADLINE_S * 1000), b"rank-0"
    rank.connect(endpoint)
    rank.send_multipart([b"hello"])
    assert wait_for(lambda: ranks.socket.poll(20) > 0)
    ((peer, frames),) = list(ranks.receive())
    assert (peer, frames[0].bytes) == (b"rank-0", b"hello")
    ranks.send(b"rank-0", [b"go"])
    ranks.send(b"rank-7", [b"go"])
    assert rank.recv() == b"go"
    rank.close()
    ranks.close()
    context.term()
    garbage.stop()
