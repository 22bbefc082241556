"""A daemon that cannot be reached or refuses the key: one clear sentence on the node, nothing hangs, and the next run is fine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from tutti.backend.wire.connection import REMOTE_FILE, Connection, find_connection, write_connection

from tests.comfy.rig import Stock, plain, prompt, succeed
from tests.support.comfyui import ComfyServer
from tests.support.daemon import Daemon
from tests.support.parity import FP32_TOLERANCE, relative_error


@contextmanager
def remote(state_dir: Path, connection: Connection) -> Iterator[None]:
    """ComfyUI was told to use a daemon of another box, as `tutti connect` does it."""
    write_connection(state_dir / REMOTE_FILE, connection.imported())
    try:
        yield
    finally:
        (state_dir / REMOTE_FILE).unlink()


def stranger(connection: Connection) -> Connection:
    """The right daemon with keys that it has never seen."""
    public, secret = zmq.curve_keypair()
    return replace(connection, client_public_key=public.decode(), client_secret_key=secret.decode())


def elsewhere(connection: Connection) -> Connection:
    """A port on which nothing listens."""
    return replace(connection, endpoint="tcp://127.0.0.1:9")


def impostor(connection: Connection) -> Connection:
    """The daemon's address, another daemon's key: whoever answers there is not whom the file names."""
    public, _ = zmq.curve_keypair()
    return replace(connection, server_public_key=public.decode())


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        (stranger, "Get a new connection file from the daemon's owner"),
        (elsewhere, "Start the daemon with `tutti serve`"),
        (impostor, "Check that a Tutti daemon listens at this address, and get a new connection file"),
    ],
    ids=["unknown key", "unreachable", "another server"],
)
def test_a_connection_that_fails_says_what_to_do(
    stock: Stock, comfy: ComfyServer, two_ranks: Daemon, comfy_state_dir: Path, change: object, begins: str
) -> None:
    with remote(comfy_state_dir, change(find_connection(comfy_state_dir))):  # type: ignore[operator]
        start = time.monotonic()
        run = comfy.run(prompt(plain()))
        assert run.status == "error"
        assert run.error.startswith(begins), run.error
        assert time.monotonic() - start < 10.0
    (expected,) = stock.latents(plain())
    again = succeed(comfy, prompt(plain()))
    assert relative_error(comfy.latents(again)[0], expected) <= FP32_TOLERANCE
