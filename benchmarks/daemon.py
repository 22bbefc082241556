"""A daemon for the length of a benchmark, with a state directory of its own, and a client that is connected to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ..backend.client import Client
from ..backend.demo.daemon import OwnDaemon

_SOFTWARE: Final = "tutti benchmarks"


@contextlib.contextmanager
def daemon(
    models: Path,
    *,
    ranks: int,
    arguments: Sequence[str] = (),
    over_tcp: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Client]:
    """``tutti serve`` with ``ranks`` CPU ranks over the models folder ``models``, ready to work; stopped at the end.

    ``over_tcp``: talk to it as another machine would, encrypted, though it is this one. ``environment``: what it and its ranks find beside
    this process' own.
    """
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as folder, _in_environment(environment or {}):
        started = OwnDaemon.start(
            models, Path(folder), device="cpu", ranks=ranks, software=_SOFTWARE, arguments=arguments
        )
        try:
            connection = replace(started.connection, local_socket=None) if over_tcp else started.connection
            with Client(connection, client_id=secrets.token_hex(16), software=_SOFTWARE) as client:
                client.connect()
                yield client
        finally:
            started.stop()


@contextlib.contextmanager
def _in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """A daemon inherits this process' environment. A benchmark is the only one in its process."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
