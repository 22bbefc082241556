"""One DEALER socket to the broker, and what its monitor tells about it. Over TCP it is encrypted and the daemon's key is pinned; a daemon
of the same user on the same machine is reached through a Unix socket. There the kernel tells the daemon who we are; that it is our
daemon follows from where the socket lies (ADR 10).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Literal

import zmq
from zmq.utils.monitor import parse_monitor_message

from ..errors import AuthFailed
from ..wire import codec, limits
from ..wire.connection import Connection
from ..wire.messages import Message
from ..wire.tensors import WireTensor
from . import local_socket

_REFUSED: Final = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_CLOSED: Final = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
"""The peer hung up in the handshake: another server key, or something that is no daemon, or a daemon that is going down."""
_UP: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED
_LOST: Final = zmq.EVENT_DISCONNECTED
_LOOK_MS: Final = 50

Leg = Literal["ipc", "tcp"]
"""``ipc``: a Unix socket of this machine, not encrypted; ``tcp``: CURVE."""
_WHEN_REFUSED: Final[Mapping[Leg, str]] = {
    "ipc": "Run ComfyUI as the user who runs the daemon, or connect over TCP with `tutti keys add`: "
    "the daemon's Unix socket is for processes of its own user, and it takes this one for another's.",
    "tcp": "Get a new connection file from the daemon's owner and run `tutti connect FILE`: the daemon refused this key.",
}
_WHEN_CLOSED: Final[Mapping[Leg, str]] = {
    "ipc": "Start the daemon again with `tutti serve`, or connect over TCP with `tutti keys add`: "
    "what listens at its Unix socket ends the connection before it has begun.",
    "tcp": "Check that a Tutti daemon listens at this address, and get a new connection file (`tutti connect FILE`) if it does: "
    "what answers there ends the connection before it has begun.",
}


class Link:
    """A socket that one thread at a time uses, and that knows whether it was lost and came back."""

    def __init__(self, connection: Connection) -> None:
        self.reconnects = 0
        """How many times the connection came up again after it was lost."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 500)  # a Cancel or Release sent just before close still leaves
        self._socket.setsockopt(zmq.MAXMSGSIZE, limits.TENSOR_BYTES)
        self._monitor = self._socket.get_monitor_socket(_REFUSED | _CLOSED | _UP | _LOST)
        self._was_up = False
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._connection = connection
        self.leg: Leg = "tcp"
        """How the daemon is reached. A Unix socket that was lost is not used again: the link goes on over TCP."""
        if connection.local_socket is not None and local_socket.is_usable(connection.local_socket):
            self._connect_unencrypted(connection.local_socket)
        else:
            self._connect_encrypted()

    def _connect_unencrypted(self, path: str) -> None:
        self.leg = "ipc"
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)  # libzmq would not look again whose socket has that name by then
        self._socket.connect(f"ipc://{path}")

    def _connect_encrypted(self) -> None:
        connection = self._connection
        self.leg = "tcp"
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        self._socket.setsockopt(zmq.IPV6, int("[" in connection.endpoint))
        self._socket.curve_serverkey = connection.server_public_key.encode("ascii")
        self._socket.curve_publickey = connection.client_public_key.encode("ascii")
        self._socket.curve_secretkey = connection.client_secret_key.encode("ascii")
        self._socket.connect(connection.endpoint)

    def send(self, message: Message, tensors: Mapping[str, WireTensor] | None = None) -> None:
        """Queue one message. Frames are sent without copying: a tensor's bytes must not change until the answer came."""
        frames = codec.encode(message, tensors)
        while True:
            try:
                self._socket.send_multipart(frames, flags=zmq.DONTWAIT, copy=len(frames) <= 2)
                return
            except zmq.Again:  # the first frame finds no place: the peer reads nothing, or the Unix socket is lost
                self.look_at_connection()
                self._socket.poll(_LOOK_MS, zmq.POLLOUT)

    def receive(self, timeout_s: float) -> codec.Received | None:
        """The next message, or None when none came in time.

        Raises:
            AuthFailed: the daemon refused our key.
            RemoteProtocolError: what came is no message.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            ready = dict(self._poller.poll(max(0, int((deadline - time.monotonic()) * 1000))))
            if self._monitor in ready:
                self.look_at_connection()
            if self._socket in ready:
                return codec.decode([frame.buffer for frame in self._socket.recv_multipart(copy=False)])
            if time.monotonic() >= deadline:
                return None

    def look_at_connection(self) -> None:
        """Read what happened to the connection since the last look; :attr:`reconnects` counts.

        Raises:
            AuthFailed: the daemon refused our key.
        """
        while self._monitor.poll(0):
            event: Any = parse_monitor_message(self._monitor.recv_multipart())
            if event["event"] & _REFUSED:
                self._socket.setsockopt(zmq.LINGER, 0)  # nobody will take what still waits to leave
                raise AuthFailed(_WHEN_REFUSED[self.leg])
            if event["event"] == _CLOSED and not self._was_up:
                raise AuthFailed(_WHEN_CLOSED[self.leg])
            if event["event"] == _LOST and self.leg == "ipc":
                self._connect_encrypted()
            if event["event"] == _UP:
                self.reconnects += self._was_up
                self._was_up = True

    def close(self) -> None:
        """Close the socket; messages already sent get half a second to leave."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._context.term()
