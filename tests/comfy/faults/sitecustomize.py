"""Imported by every Python that finds this folder on its path: makes one rank lose what it receives. The control of the parity tests.

Real ranks inherit the daemon's environment, so the fault reaches exactly the processes under test, and the product has no switch for it.
"""

from __future__ import annotations

import os

if os.environ.get("RANK") == os.environ.get("TUTTI_TEST_DEAF_RANK", "none"):
    from tutti.backend.parallel.exchange import RawCodec

    def _lose(codec, payload, landing, label):  # type: ignore[no-untyped-def]
        return landing.zero_()

    RawCodec.decode = _lose  # type: ignore[method-assign]
