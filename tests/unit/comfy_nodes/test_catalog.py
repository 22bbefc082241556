"""The loader's list of models: ComfyUI's event loop never waits for the daemon, and what the daemon has comes as soon as it is known."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tutti.backend.broker.keys import KeyPair
from tutti.backend.wire.connection import Connection, write_connection
from tutti.comfy_nodes import catalog, host
from tutti.comfy_nodes.catalog import Catalog

from tests.support.daemon import NULL_RANKS, private_state_dir, started, write_null_model

AT_ONCE_S = 0.1
"""What a list may take without the daemon; waiting for it took four times as long."""
DEADLINE_S = 30.0
NULL = "null.safetensors"


@pytest.fixture(autouse=True)
def _in_comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a ComfyUI that serves, with two files of its own."""
    monkeypatch.setattr(host, "is_serving", lambda: True)
    monkeypatch.setattr(host, "local_models", lambda: ["b.safetensors", "A.safetensors"])
    monkeypatch.setattr(host, "software", lambda: "test")


@pytest.fixture
def silent_daemon(state_dir: Path) -> Iterator[threading.Event]:
    """An address where somebody takes connections and says nothing; the event is set when one has come."""
    server, came, ends = socket.create_server(("127.0.0.1", 0)), threading.Event(), []

    def accept() -> None:
        try:
            while True:
                ends.append(server.accept()[0])
                came.set()
        except OSError:
            return

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    key = KeyPair.make()
    write_connection(
        state_dir / "connection.json",
        Connection(
            endpoint=f"tcp://127.0.0.1:{server.getsockname()[1]}",
            server_public_key=key.public,
            client_public_key=key.public,
            client_secret_key=key.secret,
        ),
    )
    yield came
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    acceptor.join()
    for end in ends:
        end.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def wait_until_nobody_asks() -> None:
    wait_until(lambda: all(thread.name != "tutti-catalog" for thread in threading.enumerate()))


def test_a_daemon_that_says_nothing_keeps_nobody_waiting(silent_daemon: threading.Event) -> None:
    found = Catalog()
    began_s = time.monotonic()
    names = [found.names() for _ in range(5)]
    took_s = time.monotonic() - began_s
    assert names == [["A.safetensors", "b.safetensors"]] * 5
    assert took_s < 5 * AT_ONCE_S
    assert silent_daemon.wait(DEADLINE_S), "the control: it was asked"
    assert sum(thread.name == "tutti-catalog" for thread in threading.enumerate()) == 1, "once, for all five"
    wait_until_nobody_asks()


def test_what_only_the_daemon_has_is_listed_when_it_has_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with private_state_dir() as state_dir:
        monkeypatch.setenv("TUTTI_STATE_DIR", str(state_dir))
        with started(write_null_model(tmp_path), state_dir, ranks=1, arguments=NULL_RANKS):
            wait_until((state_dir / "connection.json").exists)
            found = Catalog()
            assert NULL not in found.names(), "the first list has what this ComfyUI has"
            wait_until_nobody_asks()
            assert found.names() == ["A.safetensors", "b.safetensors", NULL, "tutti_demo_flux.safetensors"]
        monkeypatch.setattr(catalog, "FRESH_S", 0.0)
        assert NULL in found.names(), "what is known stays known while the daemon is away"
        wait_until_nobody_asks()
        assert NULL in found.names()
        wait_until_nobody_asks()


def test_nobody_is_asked_before_comfyui_serves(silent_daemon: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "is_serving", lambda: False)
    assert Catalog().names() == ["A.safetensors", "b.safetensors"]
    assert all(thread.name != "tutti-catalog" for thread in threading.enumerate())
