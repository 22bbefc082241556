"""What a rank does when something fails: name it for the client, or end so that the supervisor starts the group again."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Final, NoReturn

import torch

from ..errors import InternalError, OutOfMemory, TuttiError
from ..parallel.memory import is_out_of_memory

EXIT_GROUP_BROKEN: Final = 70
"""Exit code of a rank that leaves a group which cannot go on: out of step with the others, or without them or the broker."""
EXIT_OUT_OF_MEMORY: Final = 71
"""Likewise, because memory ran out on some ranks only."""
EXIT_FAILED_ALONE: Final = 72
"""Likewise, because something else failed on some ranks only."""
EXIT_NOT_STARTED: Final = 73
"""Of a rank that never came to wait for work."""

log = logging.getLogger(__name__)


def exit_status(code: str) -> int:
    """What a rank exits with when an error with this wire code broke the group (empty: none did): the daemon tells the client."""
    if code == OutOfMemory.code:
        return EXIT_OUT_OF_MEMORY
    return EXIT_FAILED_ALONE if code else EXIT_GROUP_BROKEN


def end_process(why: str, status: int = EXIT_GROUP_BROKEN) -> NoReturn:
    """Log one line and end at once, without a goodbye to the process group: the others may hang in a collective with us."""
    log.critical("this rank ends: %s", why)
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def ends_process_after(seconds: float, why: str, status: int = EXIT_GROUP_BROKEN) -> Iterator[None]:
    """End the process if the body takes longer: for a collective that the other ranks may never join."""
    timer = threading.Timer(seconds, end_process, [f"{why} took longer than {seconds:g} s", status])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def as_tutti_error(error: Exception, device: torch.device) -> TuttiError:
    """``error`` as one of ours, without its traceback, whose frames keep a failed call's tensors alive."""
    if isinstance(error, TuttiError):
        return type(error)(error.message)
    if is_out_of_memory(error):
        place = "the GPU's memory" if device.type == "cuda" else "memory"
        return OutOfMemory(
            f"Use a smaller picture, a smaller batch or another weight dtype: the call does not fit into {place}."
        )
    return InternalError(
        f"Look into the daemon's log and report what it says: a rank failed with {type(error).__name__}."
    )
