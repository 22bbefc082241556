"""Slow links made by the kernel: a network namespace for each rank, joined by a bridge in one more, every way out limited by a token bucket.

Nothing of the machine's own network is touched: both ends of every cable are born inside of the namespaces, whose names are this process' own, and
which are deleted whatever happens. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Final

from ..backend.errors import InternalError

INTERFACE: Final = "eth0"
"""A rank's only way to the others, by this name in its own namespace."""
BURST_BYTES: Final = 4096
"""What an idle link lets pass at once. As little as works: a compressed payload must not slip through for nothing."""
PACKET_BYTES: Final = 1600
QUEUE_BYTES: Final = 1 << 20
_COMMAND_S: Final = 30


def why_not() -> str | None:
    """Why this process cannot make such links; ``None`` where it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} of iproute2 cannot be found"
    name = f"tutti-{os.getpid()}-{secrets.token_hex(2)}"
    try:
        _run("ip", "netns", "add", name)
    except InternalError as error:
        return str(error)
    _run("ip", "netns", "delete", name)
    return None


@contextlib.contextmanager
def shaped_links(ranks: int, bits_per_s: float) -> Iterator[list[str]]:
    """A namespace for each rank, from which ``bits_per_s`` get out; yields their names.

    Whoever started processes in them ends these first.

    Raises:
        InternalError: a command failed; nothing of it is left.
    """
    prefix = f"tutti-{os.getpid()}-{secrets.token_hex(2)}"
    bridge, names = f"{prefix}-bridge", [f"{prefix}-{rank}" for rank in range(ranks)]
    made: list[str] = []
    try:
        for name in (bridge, *names):
            _run("ip", "netns", "add", name)
            made.append(name)
        _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", bridge, "link", "set", "br0", "up")
        for rank, name in enumerate(names):
            _join(bridge, f"port{rank}", name, f"10.77.0.{rank + 1}/24", bits_per_s)
        yield names
    finally:
        for name in reversed(made):
            _run("ip", "netns", "delete", name)


def _join(bridge: str, port: str, name: str, address: str, bits_per_s: float) -> None:
    _run("ip", "-n", bridge, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", name)
    _run("ip", "-n", bridge, "link", "set", port, "master", "br0", "up")
    _run("ip", "-n", name, "addr", "add", address, "dev", INTERFACE)
    for interface in (INTERFACE, "lo"):
        _run("ip", "-n", name, "link", "set", interface, "up")
    # One packet at a time, as a wire has them: 64 KiB in one piece would keep every small message behind it waiting for as long as a whole payload.
    _run("ip", "-n", name, "link", "set", INTERFACE, "gso_max_segs", "1", "gso_max_size", str(PACKET_BYTES))
    limit = ["rate", f"{bits_per_s:.0f}bit", "burst", str(BURST_BYTES), "limit", str(QUEUE_BYTES)]
    _run("tc", "-n", name, "qdisc", "replace", "dev", INTERFACE, "root", "tbf", *limit)


def inside(name: str, command: Sequence[str]) -> list[str]:
    """The command that runs ``command`` in this namespace, as the very process that is started."""
    return ["ip", "netns", "exec", name, *command]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMMAND_S)
    if done.returncode:
        raise InternalError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
