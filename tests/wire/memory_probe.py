"""What handling one message costs, in resident memory of a fresh process.

    python -m tests.wire.memory_probe decode|naive < frames

reads frames (each after its length in 8 bytes) and prints by how many bytes the process's peak grew. ``naive`` hands the
last frame to ``msgpack.unpackb`` with the limits of the wire: what the wire does not want to pay. Linux only: elsewhere a
process's peak begins with that of its parent.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgpack
from tutti.backend.errors import RemoteProtocolError
from tutti.backend.wire import limits
from tutti.backend.wire.codec import decode


def _frames() -> list[bytes]:
    frames = []
    while head := sys.stdin.buffer.read(8):
        frames.append(sys.stdin.buffer.read(int.from_bytes(head, "little")))
    return frames


def _naive(frames: list[bytes]) -> None:
    longest = max(limits.ARRAY_LENGTH, limits.MANIFEST_ENTRIES if len(frames) > 2 else 0)
    msgpack.unpackb(frames[-1], max_array_len=longest, max_map_len=limits.MAP_LENGTH, max_ext_len=0)


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise RuntimeError("this kernel does not tell a process's peak")
    return int(found[1]) * 1024


def main() -> None:
    """Measure one message."""
    handle = {"decode": decode, "naive": _naive}[sys.argv[1]]
    frames = _frames()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew at what is in use now
    before = _peak_bytes()
    try:
        handle(frames)
    except (RemoteProtocolError, ValueError):
        pass
    print(_peak_bytes() - before)


if __name__ == "__main__":
    main()
