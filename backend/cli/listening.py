"""``--listen``: what an address means, and when it may be used."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

from .main import CommandError

DEFAULT: Final = "127.0.0.1"
_ADDRESS: Final = re.compile(
    r"(?:tcp://)?(?:\[(?P<six>[0-9A-Fa-f:.%a-z]+)\]|(?P<host>[^\s\[\]:/]+))(?::(?P<port>\d{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen, or to connect."""

    host: str
    """A numeric address."""
    port: int
    """0: any that is free."""

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach it."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def endpoint(self) -> str:
        """As libzmq wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port or '*'}"


def split(text: str) -> tuple[str, int]:
    """Host and port (0 if none) of ``HOST``, ``HOST:PORT``, ``[V6]:PORT``, each with or without ``tcp://``.

    Raises:
        CommandError: it is none of them.
    """
    match = _ADDRESS.fullmatch(text)
    port = int(match["port"] or 0) if match else 0
    if match is None or port > 65535:
        raise CommandError(f"Write the address as HOST:PORT, such as 192.168.1.20:7788: {text!r} is none.")
    return match["six"] or match["host"], port


def parse(text: str) -> Address:
    """An address of this machine to listen at. A name is looked up.

    Raises:
        CommandError: it is no address, or a name that nobody knows.
    """
    host, port = split(text)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise CommandError(f"Give an address of this machine: {host!r} cannot be looked up.") from error
    return Address(str(found[0][4][0]), port)
