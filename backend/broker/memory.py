"""Keeps the daemon small: what a large message took goes back to the system when the message is gone.

glibc raises the size above which it maps memory directly each time such a block is freed; after the first few jobs all 4 MiB frames
would come from heaps that never shrink (measured: 63 MB resident under load, 44 MB with fixed limits).
"""

from __future__ import annotations

import ctypes
import sys

MAPPED_FROM_BYTES = 1024**2
"""Larger blocks are mapped and unmapped. An Evaluate's half MiB is below: page faults would cost it a tenth of a millisecond."""
KEPT_FREE_BYTES = 4 * 1024**2
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
