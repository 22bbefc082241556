"""A daemon of one's own is ready when it is handed over, and nothing of it stays, whether it came up or not."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from tutti.backend.client import Client
from tutti.backend.demo.daemon import OwnDaemon
from tutti.backend.errors import TuttiError

from tests.support.daemon import NULL_RANKS, write_null_model


def start(tmp_path: Path, state_dir: Path, *arguments: str) -> OwnDaemon:
    models = write_null_model(tmp_path)
    return OwnDaemon.start(models, state_dir, device="cpu", ranks=1, software="test", arguments=arguments)


def test_it_works_until_it_is_stopped(tmp_path: Path, state_dir: Path) -> None:
    started = start(tmp_path, state_dir, *NULL_RANKS)
    assert started.connection.pid is not None
    assert psutil.pid_exists(started.connection.pid)
    with Client(started.connection, client_id="aa" * 16, software="test") as client:
        client.connect()
        assert client.status().state == "ready"
    started.stop()
    assert not psutil.pid_exists(started.connection.pid)
    started.stop()


def test_one_that_does_not_come_up_leaves_nothing(tmp_path: Path, state_dir: Path) -> None:
    before = psutil.Process(os.getpid()).children()
    with pytest.raises(TuttiError):
        start(tmp_path, state_dir, "--listen", "192.0.2.7:7788", *NULL_RANKS)
    new = set(psutil.Process(os.getpid()).children()) - set(before)
    assert not new, "helpers of other tests may be there before, and end meanwhile"
