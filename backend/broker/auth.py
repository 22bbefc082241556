"""Who may talk to the broker: CURVE on every TCP socket, this user's processes on the Unix socket, and the ZAP handler (RFC 27) that
knows the clients' keys.

The handler must be bound before the socket it guards: with CURVE but without a handler libzmq lets any key in. As a second line,
the server drops every message that does not carry a key that is valid at that moment: a revoked key is out at once, not only when
its connection ends, and stays out when another key gets its name.
"""

from __future__ import annotations

import logging
import os
import re
import sys

import zmq
from zmq.utils import z85

from ..errors import ConnectionFileProblem
from .keys import LOCAL, AuthorizedKeys, KeyPair

log = logging.getLogger(__name__)

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
DOMAIN = b"tutti"
LOCAL_DOMAIN = b"tutti-local"
_CREDENTIALS = re.compile(rb"[^:]*:(?P<uid>\d+):\d+:\d+")
"""What libzmq gives as the address of a peer on a Unix socket: ``localhost:UID:GID:PID``, as the kernel says (SO_PEERCRED)."""
_WHO_WAS_TURNED_AWAY = {
    DOMAIN: "with a key that is not known: `tutti keys add` makes one",
    LOCAL_DOMAIN: "of another user: run ComfyUI as the user who runs the daemon, or connect over TCP with `tutti keys add`",
}
HAS_PEER_CREDENTIALS = sys.platform == "linux"
"""Whether libzmq tells who is at the other end of a Unix socket. Elsewhere local clients use TCP and CURVE like all others."""
OLDEST_LIBZMQ = (4, 3, 5)
"""Older ones have holes that are open before any key is checked (CVE-2020-15166, CVE-2019-13132, CVE-2019-6250)."""


def check_libzmq(version: tuple[int, int, int] | None = None, *, has_curve: bool | None = None) -> str | None:
    """Why this libzmq cannot be used, or None."""
    version = version or zmq.zmq_version_info()
    if version < OLDEST_LIBZMQ:
        needed, found = (".".join(map(str, numbers)) for numbers in (OLDEST_LIBZMQ, version))
        return f"Install pyzmq 26 or later (`pip install -U pyzmq`): libzmq {needed} is needed, this is {found}."
    if not (zmq.has("curve") if has_curve is None else has_curve):
        return (
            "Install pyzmq from its wheels (`pip install --force-reinstall pyzmq`): this build has no CURVE encryption."
        )
    return None


class Gate:
    """Knows which keys are valid now."""

    def __init__(self, local: KeyPair, authorized: AuthorizedKeys) -> None:
        self._local = local
        self._authorized = authorized

    def name_of(self, public: str) -> str | None:
        """The name of a public key, or None if it may not talk to us."""
        if public == self._local.public:
            return LOCAL
        for name, key in self._names().items():
            if key == public:
                return name
        return None

    def user_with(self, public: str) -> str | None:
        """What a connection is called that proved to hold this key's secret; None shuts it out."""
        return public if self.admits(public) else None

    def user_of_process(self, address: bytes) -> str | None:
        """What a connection over the Unix socket is called; None shuts it out. Only processes of this user are let in: they could
        read the local key's file as well, and count as its holder."""
        credentials = _CREDENTIALS.fullmatch(address)
        is_ours = credentials is not None and int(credentials["uid"]) == os.geteuid()
        return self._local.public if is_ours else None

    def admits(self, public: str | None) -> bool:
        """Whether a key that was let in is still valid."""
        return public is not None and self.name_of(public) is not None

    def _names(self) -> dict[str, str]:
        try:
            return self._authorized.names()
        except ConnectionFileProblem as error:
            log.error("nobody from another box is let in: %s", error)
            return {}


class ZapHandler:
    """Answers libzmq's question for every handshake. Polled by the main loop."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], gate: Gate) -> None:
        self._gate = gate
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ZAP_ENDPOINT)

    def answer(self) -> None:
        """Answer one waiting question."""
        request = self.socket.recv_multipart()
        version, request_id, domain, address, _identity, mechanism, *credentials = request
        user = None
        if (version, domain, mechanism) == (ZAP_VERSION, DOMAIN, b"CURVE") and len(credentials) == 1:
            user = self._gate.user_with(z85.encode(credentials[0]).decode("ascii"))
        elif (version, domain, mechanism) == (ZAP_VERSION, LOCAL_DOMAIN, b"NULL") and not credentials:
            user = self._gate.user_of_process(address)
        status, text = (b"200", b"OK") if user else (b"400", b"unknown key")
        self.socket.send_multipart([ZAP_VERSION, request_id, status, text, (user or "").encode("ascii"), b""])
        if not user:
            log.warning("turned away a connection %s", _WHO_WAS_TURNED_AWAY.get(domain, "that asked for nothing known"))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def make_curve_server(socket: zmq.Socket[bytes], key: KeyPair) -> None:
    """Let only holders of known keys through. Before bind."""
    socket.curve_secretkey = key.secret.encode("ascii")
    socket.curve_publickey = key.public.encode("ascii")
    socket.curve_server = True
    socket.zap_domain = DOMAIN


def make_local_server(socket: zmq.Socket[bytes]) -> None:
    """Have the ZAP handler asked about every connection that proves nothing by itself. Before the bind of a Unix socket only."""
    socket.zap_domain = LOCAL_DOMAIN


def user_of(frame: zmq.Frame) -> str | None:
    """The public key whose secret the connection of this frame proved to hold; the local one for a process of this user."""
    try:
        public = frame.get("User-Id")
    except zmq.ZMQError:
        return None
    return public if isinstance(public, str) and public else None
