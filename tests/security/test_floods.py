"""A client that asks for too much at once: every question is answered, most of them by a refusal, and others are not held up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import zmq
from tutti.backend.broker.settings import Quotas
from tutti.backend.wire import codec
from tutti.backend.wire.connection import find_connection
from tutti.backend.wire.messages import Describe, Described, Failed, Hello, Message, Welcome

from tests.support.daemon import NULL_MODEL, Daemon

FLOOD = 1000


@contextmanager
def raw_client(daemon: Daemon) -> Iterator[zmq.Socket[bytes]]:
    """A holder of the local key that keeps to no rule of our client."""
    connection = find_connection(daemon.state_dir)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger, socket.rcvtimeo, socket.sndhwm, socket.rcvhwm = 0, 20_000, 0, 0
    socket.curve_serverkey = connection.server_public_key.encode()
    socket.curve_publickey = connection.client_public_key.encode()
    socket.curve_secretkey = connection.client_secret_key.encode()
    socket.connect(connection.endpoint)
    try:
        yield socket
    finally:
        context.destroy(linger=0)


def hear(socket: zmq.Socket[bytes]) -> Message:
    return codec.decode(socket.recv_multipart()).message


def test_a_flood_of_describes_is_answered_to_the_last_and_holds_nobody_up(daemon: Daemon) -> None:
    with raw_client(daemon) as flooder, daemon.client() as other:
        flooder.send_multipart(codec.encode(Hello(client_id="f1" * 16, software="flooder")))
        assert isinstance(hear(flooder), Welcome)
        for request in range(1, FLOOD + 1):
            flooder.send_multipart(codec.encode(Describe(request=request, model="")))
        assert other.describe(NULL_MODEL).message.model == NULL_MODEL
        answers = [hear(flooder) for _ in range(FLOOD)]
        kinds = Counter(getattr(answer, "code", type(answer).__name__) for answer in answers)
        assert kinds["queue_full"] + kinds["Described"] == FLOOD
        assert kinds["Described"] >= Quotas().connection_describes
        assert kinds["queue_full"] > 0, "the flood was none: the test proves nothing"
        assert {answer.request for answer in answers if isinstance(answer, Described | Failed)} == set(
            range(1, FLOOD + 1)
        )
        flooder.send_multipart(codec.encode(Describe(request=FLOOD + 1, model=NULL_MODEL)))
        assert isinstance(hear(flooder), Described), "a flood that is over is forgotten"


def test_one_question_after_the_other_is_never_refused(daemon: Daemon) -> None:
    with daemon.client() as client:
        for _ in range(5 * Quotas().user_describes):
            client.describe(NULL_MODEL)
