"""One daemon of null ranks for the tests that only talk to it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from zmq.utils.garbage import gc as garbage

from tests.support.daemon import NULL_RANKS, Daemon, private_state_dir, running, write_null_model


@pytest.fixture(scope="module")
def null_models() -> Iterator[Path]:
    """A models folder with the null model."""
    folder = Path(tempfile.mkdtemp(prefix="m"))
    yield write_null_model(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def daemon(null_models: Path) -> Iterator[Daemon]:
    """Ready to work."""
    with private_state_dir() as state_dir, running(null_models, state_dir, ranks=2, arguments=NULL_RANKS) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_garbage_thread() -> Iterator[None]:
    """pyzmq keeps a thread of its own once buffers were sent without a copy; it would count as left behind."""
    yield
    garbage.stop()
