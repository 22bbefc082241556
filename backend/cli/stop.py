"""``tutti stop``: the daemon of this machine finishes what has begun, and ends."""

from __future__ import annotations

import argparse
import os
import signal
import time

from . import state_directory
from .main import CommandError
from .state_directory import DaemonLock

LONGEST_S = 45.0
"""A drain takes up to 28 s; the ranks' end a few more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    state_directory.add_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Stop it and wait until it is gone. It is no error if none runs."""
    lock = DaemonLock(state_directory.chosen(options))
    pid = lock.holder()
    if pid is None:
        print("No daemon runs.")
        return 0
    print(f"Stopping the daemon (process {pid}); what has begun is finished first ...", flush=True)
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ended just now
    except PermissionError as error:
        raise CommandError(f"Stop it as the user who started it: process {pid} belongs to somebody else.") from error
    deadline_s = time.monotonic() + LONGEST_S
    while lock.holder() is not None:
        if time.monotonic() > deadline_s:
            raise CommandError(
                f"End it with `kill -9 {pid}` (its ranks end with it): it did not stop within {LONGEST_S:.0f} s."
            )
        time.sleep(0.05)
    print("Stopped.")
    return 0
