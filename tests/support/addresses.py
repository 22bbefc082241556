"""Addresses of this machine that a test may listen at."""

from __future__ import annotations

import socket

import pytest

LOOPBACKS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def has_ipv6_loopback() -> bool:
    """Whether something can listen at ``::1`` here."""
    try:
        free_port(socket.AF_INET6)
    except OSError:
        return False
    return True


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    """A port of the loopback that nobody listened at a moment ago."""
    with socket.create_server((LOOPBACKS[family], 0), family=family) as taken:
        return int(taken.getsockname()[1])


needs_ipv6 = pytest.mark.skipif(
    not has_ipv6_loopback(), reason="this machine has no IPv6 loopback: sysctl -w net.ipv6.conf.lo.disable_ipv6=0"
)
