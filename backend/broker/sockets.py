"""The two ROUTER sockets, and what each of them must never do: drop a result, wait for a slow reader, trust an unproven sender."""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from ..errors import Busy
from ..wire import codec, limits
from ..wire.codec import Frame
from ..wire.messages import Failed
from .auth import make_curve_server, make_local_server, user_of
from .keys import KeyPair

log = logging.getLogger(__name__)

IO_THREADS = 2
"""Threads of the context: encrypting a result for a client must not keep the ranks waiting."""
CLIENT_THREAD, RANK_THREAD = 0b01, 0b10
BATCH = 32
"""Messages taken from one socket before the others get their turn."""
CLIENT_SEND_MARK = 64
"""Messages that libzmq holds for one client that does not read."""
CLIENT_RECEIVE_MARK = 16
OUTBOX_MESSAGES = 1024
"""Messages that we hold for a client beyond that. More means that it never reads: they are dropped, and it is told so in their place."""
OUTBOX_BYTES = 64 * 1024**2
"""Likewise in bytes; one message may be larger, and waits alone."""
OUTBOX_RETRY_S = 0.05
DROPPED = Failed(
    code=Busy.code,
    message="Run it again: so much was sent to this connection while it read nothing that the answers were dropped.",
)
"""About no job and no request: it ends whatever its client waits for, because any answer may be among what was dropped."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that a slow client has not taken yet."""

    frames: Sequence[Any]
    size_bytes: int
    answers: str | None = None
    """Job whose Result or Evaluated it is."""
    replaces: str | None = None
    """What it is the newest word on: it makes the older one worthless, and may be lost itself."""


@dataclass(slots=True)
class Outbox:
    """What one slow client has not taken yet, in order."""

    waiting: deque[Waiting] = field(default_factory=deque)
    size_bytes: int = 0

    def put(self, frames: list[Any], *, answers: str | None, replaces: str | None) -> list[str]:
        """Keep one more message, instead of an older one if it replaces that; returns the jobs whose answers are lost by it.

        What may be lost goes first. If it is still too much, all goes: in its place the client will read :data:`DROPPED`.
        """
        message = Waiting(frames, sum(_size_bytes(frame) for frame in frames), answers, replaces)
        if replaces is not None:
            self._keep(item for item in self.waiting if item.replaces != replaces)
        if self._has_no_room_for(message):
            self._keep(item for item in self.waiting if item.replaces is None)
        if not self._has_no_room_for(message):
            self.waiting.append(message)
            self.size_bytes += message.size_bytes
            return []
        if replaces is not None:
            return []
        log.warning("a client does not read what it asks for; dropped %d messages", len(self.waiting) + 1)
        lost = self.lose()
        self._keep([Waiting(codec.encode(DROPPED), size_bytes=0)])
        return lost if answers is None else [*lost, answers]

    def sent(self) -> None:
        """The client has taken the first one."""
        self.size_bytes -= self.waiting.popleft().size_bytes

    def lose(self) -> list[str]:
        """Drop everything; returns the jobs whose answers were among it."""
        lost = [item.answers for item in self.waiting if item.answers is not None]
        self._keep(())
        return lost

    def _has_no_room_for(self, message: Waiting) -> bool:
        # What is larger than the bound may still wait alone, or behind the notice that all before it was dropped (0 bytes).
        is_too_large = self.size_bytes > 0 and self.size_bytes + message.size_bytes > OUTBOX_BYTES
        return len(self.waiting) >= OUTBOX_MESSAGES or is_too_large

    def _keep(self, items: Iterable[Waiting]) -> None:
        self.waiting = deque(items)
        self.size_bytes = sum(item.size_bytes for item in self.waiting)


class ClientSocket:
    """ROUTER for clients: over TCP and CURVE, and over a Unix socket for those of this user."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], key: KeyPair, local_socket: Path | None = None) -> None:
        """``local_socket``: where to make the Unix socket, in a folder that only this user can enter; None makes none."""
        self.socket = context.socket(zmq.ROUTER)
        self.socket.affinity = CLIENT_THREAD
        self.socket.maxmsgsize = limits.TENSOR_BYTES  # of one frame
        self.socket.router_mandatory = True
        self.socket.sndhwm = CLIENT_SEND_MARK
        self.socket.rcvhwm = CLIENT_RECEIVE_MARK
        self.socket.linger = 1000
        self.socket.tcp_keepalive = 1
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
        if (
            local_socket is not None
        ):  # a bind keeps the options of its moment: this one comes before CURVE, all others after it
            make_local_server(self.socket)
            self.socket.bind(f"ipc://{local_socket}")
        make_curve_server(self.socket, key)
        self._outbox: dict[bytes, Outbox] = {}

    def bind(self, address: str) -> str:
        """Listen at ``tcp://HOST:PORT`` (port 0 or ``*``: any; an IPv6 host in brackets); returns the address with the port."""
        # A bind keeps the options of its moment. Set for an IPv4 address too, this one would map it into IPv6.
        self.socket.setsockopt(zmq.IPV6, int("[" in address))
        self.socket.bind(address)
        bound = self.socket.getsockopt(zmq.LAST_ENDPOINT)
        return bound.decode("ascii").rstrip("\0") if isinstance(bound, bytes) else address

    def receive(self) -> Iterator[tuple[bytes, str | None, list[zmq.Frame]]]:
        """Messages that are there: (connection, name of its key, frames)."""
        for frames in _receive(self.socket):
            yield frames[0].bytes, user_of(frames[-1]), frames[1:]

    def send(
        self, peer: bytes, frames: Sequence[Frame], *, answers: str | None = None, replaces: str | None = None
    ) -> list[str]:
        """Send now, or as soon as the client takes it.

        ``answers``: the job whose Result or Evaluated this is; ``replaces``: see :class:`Waiting`. Returns the jobs whose answers nobody
        will get, this one's or those that waited before it: the connection is gone, or its client reads nothing.
        """
        ready = sendable(frames)
        outbox = self._outbox.get(peer)
        if outbox is None:
            sent = self._try(peer, ready)
            if sent is not None:
                return [answers] if answers is not None and not sent else []
            outbox = self._outbox[peer] = Outbox()
        return outbox.put(ready, answers=answers, replaces=replaces)

    def send_tracked(self, peer: bytes, frames: Sequence[Frame]) -> Callable[[], bool] | None:
        """Send a message that may be lost; returns what tells whether its last frame has left this process.

        None if it cannot be sent now: the client is slow, or gone.
        """
        if peer in self._outbox:
            return None
        *ready, last = sendable(frames)
        tracked = zmq.Frame(memoryview(last), track=True, copy=False, copy_threshold=0)
        if self._try(peer, [*ready, tracked]) is None:
            return None
        tracker = tracked.tracker
        return lambda: tracker is None or bool(tracker.done)

    def flush(self) -> list[str]:
        """Try again what slow clients have not taken; returns the jobs whose answers nobody will get: their connections are gone."""
        lost: list[str] = []
        for peer, outbox in list(self._outbox.items()):
            while outbox.waiting and (sent := self._try(peer, outbox.waiting[0].frames)) is not None:
                if sent:
                    outbox.sent()
                else:
                    lost += outbox.lose()
            if not outbox.waiting:
                del self._outbox[peer]
        return lost

    def forget(self, peer: bytes) -> list[str]:
        """The client vanished: what waits for it is waste. Returns the jobs whose answers were among it."""
        outbox = self._outbox.pop(peer, None)
        return outbox.lose() if outbox else []

    @property
    def has_waiting(self) -> bool:
        """Whether somebody has not taken everything."""
        return bool(self._outbox)

    def close(self) -> None:
        """Close; messages that were sent get a second to leave."""
        self.socket.close()

    def _try(self, peer: bytes, frames: Sequence[Any]) -> bool | None:
        """True if it was sent, None if it cannot be now, False if it never can be."""
        try:
            self.socket.send_multipart([peer, *frames], flags=zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            return False
        return True


class RankSocket:
    """ROUTER for ranks, over a Unix socket that only this user can reach."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.affinity = RANK_THREAD
        self.socket.maxmsgsize = limits.TENSOR_BYTES
        self.socket.router_mandatory = True
        self.socket.sndhwm = 0  # one turn at a time: what the ranks have not read is bounded by that
        self.socket.linger = 0

    def bind(self, address: str) -> None:
        """Listen."""
        self.socket.bind(address)

    def receive(self) -> Iterator[tuple[bytes, list[zmq.Frame]]]:
        """Messages that are there: (rank's identity, frames)."""
        for frames in _receive(self.socket):
            yield frames[0].bytes, frames[1:]

    def send(self, peer: bytes, frames: Sequence[Frame]) -> None:
        """Send. A rank that is gone gets nothing: the supervisor will say that it died."""
        try:
            self.socket.send_multipart([peer, *sendable(frames)], flags=zmq.DONTWAIT, copy=False)
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise

    def close(self) -> None:
        """Close."""
        self.socket.close()


def _receive(socket: zmq.Socket[bytes]) -> Iterator[list[zmq.Frame]]:
    for _ in range(BATCH):
        if not int(socket.get(zmq.EVENTS)) & zmq.POLLIN:  # cheaper than an exception from every last receive
            return
        yield socket.recv_multipart(flags=zmq.DONTWAIT, copy=False)


def sendable(frames: Sequence[Frame]) -> list[Any]:
    """Frames for ``send_multipart``. One that came from a socket goes out as the message it is: shared, not copied, not pinned."""
    return [_message_behind(frame) for frame in frames]


def _size_bytes(frame: Any) -> int:
    return len(frame) if isinstance(frame, zmq.Frame) else memoryview(frame).nbytes


def _message_behind(frame: Frame) -> Any:
    if isinstance(frame, memoryview) and isinstance(frame.obj, zmq.Frame) and frame.nbytes == len(frame.obj):
        return frame.obj
    return frame
