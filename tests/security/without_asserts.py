"""The core of the security promises, checked without a single assert: run with ``python -O``, which removes them from our code too."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tutti.backend.broker.auth import Gate, check_libzmq
from tutti.backend.broker.catalog import Catalog
from tutti.backend.broker.group import Group
from tutti.backend.broker.keys import AuthorizedKeys, KeyPair, server_key
from tutti.backend.broker.names import relative_path
from tutti.backend.errors import ConnectionFileProblem, RemoteProtocolError, TuttiError, UnknownModel
from tutti.backend.wire import codec
from tutti.backend.wire.messages import RankHello


def refuses(error: type[TuttiError], call: Callable[[], object]) -> None:
    """End the process unless ``call`` raises ``error``."""
    try:
        call()
    except error:
        return
    sys.exit(f"{call} was not refused with {error.__name__}")


def holds(truth: bool, what: str) -> None:
    """End the process unless it is true."""
    if not truth:
        sys.exit(f"not so: {what}")


def check_bytes() -> None:
    """Hostile bytes."""
    good = [codec.PREAMBLE, b"\x84\xa4type\xa4Ping\xa4body\x81\xa5nonce\x01\xa7tensors\x90\xa8manifest\xc2"]
    codec.decode(good)
    for frames in (
        [],
        [b""],
        [b"TUTTI\x01\x00\x00"],
        [b"NOT US\x01\x00", good[1]],
        [good[0], b"\xdd\xff\xff\xff\xff"],
        [*good, b"more"],
    ):
        refuses(RemoteProtocolError, lambda frames=frames: codec.decode(frames))


def check_keys(folder: Path) -> None:
    """Keys and who they admit."""
    server_key(folder)
    (folder / "server_key.json").chmod(0o644)
    refuses(ConnectionFileProblem, lambda: server_key(folder))
    local, keys = KeyPair.make(), AuthorizedKeys(folder)
    gate = Gate(local, keys)
    holds(gate.name_of(KeyPair.make().public) is None, "a stranger's key is unknown")
    holds(gate.name_of(local.public) == "local", "our own key is known")
    holds(not gate.admits("stranger"), "a stranger's name admits nobody")
    holds(check_libzmq((4, 3, 4), has_curve=True) is not None, "an old libzmq is refused")


def check_names(folder: Path) -> None:
    """Names that are paths."""
    catalog = Catalog([folder], folder / "folders.json")
    for name in (
        "../x.safetensors",
        "diffusion_models/../x.safetensors",
        "/etc/passwd",
        "diffusion_models/\x00.safetensors",
        "",
    ):
        refuses(UnknownModel, lambda name=name: relative_path(name))
        refuses(UnknownModel, lambda name=name: catalog.resolve(name))


def check_ranks() -> None:
    """Ranks without the token."""
    group = Group(world_size=1)
    group.start(0, "a" * 32, "b" * 64)
    hello = {
        "group_id": 0,
        "incarnation": "a" * 32,
        "rank": 0,
        "world_size": 1,
        "pid": 1,
        "device": "cpu",
        "transport": "gloo",
    }
    holds(group.hello(b"x", RankHello(token="c" * 64, **hello)) is not None, "a wrong token is turned away")  # type: ignore[arg-type]
    holds(group.hello(b"x", RankHello(token="b" * 64, **hello)) is None, "the right one is not")  # type: ignore[arg-type]


def main() -> None:
    """Everything."""
    holds(not __debug__, "this runs under python -O")
    with tempfile.TemporaryDirectory() as name:
        check_bytes()
        check_keys(Path(name))
        check_names(Path(name))
        check_ranks()
    print("all refused")


if __name__ == "__main__":
    main()
