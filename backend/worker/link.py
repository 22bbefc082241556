"""The rank's socket to the broker: one DEALER over ipc. It connects once; a broker that is lost is lost for this incarnation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import zmq

from ..wire.codec import Received, decode, encode
from ..wire.messages import Message
from ..wire.tensors import WireTensor

SEND_TIMEOUT_MS = 10_000
"""A send waits only when the connection is gone or the broker has stopped reading."""
LINGER_MS = 500
"""How long a closing rank goes on delivering its last words."""


class HasFileno(Protocol):
    """Anything that a poller can wait on."""

    def fileno(self) -> int:
        """Its descriptor."""


class LinkLost(ConnectionError):
    """The broker is gone. Nothing can be reported any more: the rank ends."""


class BrokerLink:
    """Messages to and from the broker. For one thread. Waiting ends when ``interrupt`` becomes readable."""

    def __init__(self, endpoint: str, identity: bytes, interrupt: HasFileno) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.identity = identity
        self._socket.linger = LINGER_MS
        self._socket.sndtimeo = SEND_TIMEOUT_MS
        self._socket.reconnect_ivl = -1
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        self._socket.connect(endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._poller.register(interrupt, zmq.POLLIN)

    def send(self, message: Message, tensors: Mapping[str, WireTensor] | None = None) -> None:
        """Hand a message to the socket's own thread. Tensors are not copied: their memory must not change afterwards.

        Raises:
            LinkLost: the broker takes nothing any more.
        """
        try:
            self._socket.send_multipart(encode(message, tensors), copy=False)
        except zmq.Again:
            raise LinkLost(f"the broker took no message for {SEND_TIMEOUT_MS / 1000:g} s") from None

    def receive(self) -> Received | None:
        """Wait for the next message; None when the wait was interrupted.

        Raises:
            LinkLost: the broker closed the connection.
            RemoteProtocolError: what came is not a message.
        """
        ready = dict(self._poller.poll())
        if self._socket in ready:
            return self._read()
        if self._monitor in ready:
            raise LinkLost("the broker closed the connection")
        return None

    def receive_now(self) -> Received | None:
        """The next message if one is here. Costs about a microsecond when there is none."""
        return self._read() if int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN else None

    def _read(self) -> Received:
        return decode([frame.buffer for frame in self._socket.recv_multipart(copy=False)])

    def close(self) -> None:
        """Deliver what is still on its way, for a moment, and close."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._context.term()
