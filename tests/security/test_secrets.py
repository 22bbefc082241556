"""Keys and tokens stay where they belong: not in logs, arguments, environments, errors or files that others can read."""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tutti.backend.broker.keys import AuthorizedKeys, KeyPair
from tutti.backend.client import Client
from tutti.backend.errors import AuthFailed, TuttiError, UnknownModel
from tutti.backend.wire.connection import find_connection

from tests.security.attackers import null_sample
from tests.support.daemon import Daemon


def secret_keys(state_dir: Path) -> dict[str, str]:
    """Every secret of a daemon that runs."""
    return {
        "server key": json.loads((state_dir / "server_key.json").read_text())["secret"],
        "local client key": json.loads((state_dir / "connection.json").read_text())["client_secret_key"],
    }


def places(daemon: Daemon) -> Iterator[tuple[str, str]]:
    """Everything that somebody may look at: (where, text)."""
    for process in daemon.tree:
        yield f"arguments of {process.pid}", " ".join(process.cmdline())
        yield f"environment of {process.pid}", json.dumps(process.environ(), ensure_ascii=False)
        yield f"title of {process.pid}", process.name()
    for path in (daemon.state_dir / "logs").rglob("*"):
        yield str(path), path.read_text(errors="replace")


def tokens(daemon: Daemon) -> list[str]:
    """The incarnation's token, from where it belongs: the ranks' environment as they were started."""
    return [process.environ()["TUTTI_TOKEN"] for process in daemon.tree if "TUTTI_TOKEN" in process.environ()]


def provoke(daemon: Daemon) -> list[str]:
    """Errors of many kinds; returns their texts."""
    connection, stranger, texts = find_connection(daemon.state_dir), KeyPair.make(), []
    with Client(connection, client_id="ab" * 16, software="test") as client:
        client.connect()
        for model in ("diffusion_models/none.safetensors", "../x", ""):
            message, tensors = null_sample(model=model)
            with pytest.raises(UnknownModel) as unknown:
                client.sample(message, tensors, lambda _: None)
            texts.append(unknown.value.message)
        with pytest.raises(TuttiError) as described:
            client.describe("diffusion_models/none.safetensors")
        texts.append(described.value.message)
        client.sample(*null_sample(), lambda _: None)
    wrong = replace(connection, client_public_key=stranger.public, client_secret_key=stranger.secret, local_socket=None)
    with Client(wrong, client_id="ab" * 16, software="test") as client, pytest.raises(AuthFailed) as refused:
        client.connect()
    return [*texts, refused.value.message]


def test_no_secret_key_is_anywhere_but_in_its_file(daemon: Daemon) -> None:
    texts = provoke(daemon)
    for name, secret in secret_keys(daemon.state_dir).items():
        assert [where for where, text in places(daemon) if secret in text] == [], name
        assert not any(secret in text for text in texts), name


def test_the_ranks_token_is_in_no_argument_log_or_error(daemon: Daemon) -> None:
    texts = provoke(daemon)
    (token, *others) = tokens(daemon)
    assert set(others) <= {token}
    assert len(token) == 64
    seen = [where for where, text in places(daemon) if token in text and not where.startswith("environment")]
    assert seen == []
    assert not any(token in text for text in texts)
    assert token not in json.dumps(psutil.Process(daemon.process.pid).environ())


def test_a_secret_that_leaks_is_found(daemon: Daemon) -> None:
    """Negative control."""
    canary = secrets.token_hex(16)
    log = daemon.state_dir / "logs" / "canary.log"
    log.write_text(f"key={canary}")
    try:
        assert [where for where, text in places(daemon) if canary in text] == [str(log)]
    finally:
        log.unlink()


def test_errors_tell_a_client_nothing_about_the_daemons_machine(daemon: Daemon, null_models: Path) -> None:
    canaries = {str(daemon.state_dir), str(null_models), socket.gethostname(), str(Path.home()), str(os.getpid())}
    for text in provoke(daemon):
        assert not [canary for canary in canaries if canary in text], text


def test_everything_secret_is_private(daemon: Daemon) -> None:
    AuthorizedKeys(daemon.state_dir).add("box", KeyPair.make().public)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in daemon.state_dir.iterdir()}
    private = {
        "server_key.json": 0o600,
        "connection.json": 0o600,
        "authorized_keys.json": 0o600,
        "daemon.lock": 0o600,
        "run": 0o700,
    }
    assert {name: modes[name] for name in private} == private
    assert stat.S_IMODE(daemon.state_dir.stat().st_mode) == 0o700
    pipes = [path for path in (daemon.state_dir / "run").iterdir() if stat.S_ISFIFO(path.stat().st_mode)]
    assert [stat.S_IMODE(pipe.stat().st_mode) for pipe in pipes] == [0o600]
