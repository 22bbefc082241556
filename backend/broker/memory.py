"""Keeps the daemon small: free memory goes back to the system, and is kept in few places.

With glibc's own limits the heaps of every thread grow to the largest moment of each (measured under load: 63 MB resident, here 50).
Mapping each large frame on its own would be smaller still (44 MB), but its page faults cost 8 ms of every Sample.
"""

from __future__ import annotations

import ctypes
import sys

MAPPED_FROM_BYTES = 32 * 1024**2
"""Larger blocks are mapped and unmapped. A FLUX job's 4 MiB frames are below: they are used again and again."""
KEPT_FREE_BYTES = 8 * 1024**2
ARENAS = 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_small() -> bool:
    """Fix glibc's limits. Call it before threads are started. Returns whether this C library has them."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES), (_M_TRIM_THRESHOLD, KEPT_FREE_BYTES), (_M_ARENA_MAX, ARENAS))
    return all(mallopt(name, value) == 1 for name, value in options)
