"""A daemon with two ranks and the smallest FLUX.1, and a client of it, for whoever brings none of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tutti.backend.client import Client

from tests.support.checkpoints import write_tiny_flux
from tests.support.daemon import Daemon, private_state_dir, running
from tests.support.rank_leg import MODEL


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its models folder."""
    folder = tmp_path_factory.mktemp("models")
    (folder / MODEL).parent.mkdir()
    write_tiny_flux(folder / MODEL, depth=1, depth_single=1)
    return folder


@pytest.fixture(scope="module")
def daemon(models: Path) -> Iterator[Daemon]:
    """Up as long as a module's tests run."""
    with private_state_dir() as state_dir, running(models, state_dir, ranks=2) as started:
        yield started


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    """A new one for each test."""
    with daemon.client() as connected:
        yield connected
