"""Reading msgpack one token at a time, so that nothing is built that the reader did not ask for.

``msgpack.unpackb`` builds whatever the bytes describe before anybody has looked at it: 3 KiB of nested array headers
cost 8 MiB, and 64 KiB of empty maps 4.5 MiB, whatever its limits are. Here the caller names what must come next. Bytes
that say something else raise one of :data:`UNREADABLE`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NoReturn

import msgpack

UNREADABLE: Final = (ValueError, msgpack.UnpackException)
"""What msgpack raises on bad bytes: half a dozen subclasses of these two (cut short, not UTF-8, too long, unknown
marker, ...)."""


class Cursor:
    """A place in msgpack data that moves forward with every read. A value that failed to be read ends its use."""

    __slots__ = ("_size_bytes", "_tell", "array_length", "lenient", "map_length", "scalar", "skip")

    array_length: Callable[[], int]
    """Enter an array; its length as claimed, not yet compared with anything."""
    map_length: Callable[[], int]
    """Enter a map; its length as claimed."""
    scalar: Callable[[], Any]
    """Read one string, number, truth value, binary or nil. A container is refused before it is built."""
    skip: Callable[[], None]
    """Pass over one value of any kind without building it."""

    def __init__(
        self, data: bytes | memoryview, *, string_bytes: int, container_length: int, lenient: bool = False
    ) -> None:
        """``container_length`` is the longest container that the caller may enter; the caller checks shorter bounds
        itself. ``lenient`` is for the schema: pass over unknown fields instead of refusing them."""
        limit = 0 if _limits_bind_only_values() else container_length
        unpacker = msgpack.Unpacker(
            None,
            raw=False,
            max_buffer_size=max(len(data), 1),
            max_str_len=string_bytes,
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=limit,
            max_map_len=limit,
            list_hook=_refuse_container,
            object_pairs_hook=_refuse_container,
        )
        unpacker.feed(data)
        self.array_length = unpacker.read_array_header
        self.map_length = unpacker.read_map_header
        self.scalar = unpacker.unpack
        self.skip = unpacker.skip
        self.lenient = lenient
        self._tell = unpacker.tell
        self._size_bytes = len(data)

    def at_end(self) -> bool:
        """Whether everything was read."""
        return bool(self._tell() == self._size_bytes)


def _refuse_container(_: Any) -> NoReturn:
    """Called with the first, innermost container that msgpack completes inside a scalar."""
    raise ValueError("an array or map where a single value is expected")


@cache
def _limits_bind_only_values() -> bool:
    """Whether ``max_array_len`` leaves array headers alone. The compiled msgpack applies it to values that it builds,
    so 0 forbids them; its pure-Python twin (no compiler, no wheel) applies it to headers too."""
    unpacker = msgpack.Unpacker(None, max_array_len=0, max_buffer_size=1)  # it reserves what it may hold
    unpacker.feed(b"\x91")
    try:
        unpacker.read_array_header()
    except ValueError:
        return False
    return True
