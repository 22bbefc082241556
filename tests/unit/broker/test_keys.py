"""Keys on disk, and who they let in."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq
from tutti.backend.broker.auth import OLDEST_LIBZMQ, Gate, check_libzmq
from tutti.backend.broker.keys import LOCAL, AuthorizedKeys, KeyPair, server_key
from tutti.backend.errors import ConnectionFileProblem


def test_the_servers_key_is_made_once_and_stays() -> None:
    assert KeyPair.make() != KeyPair.make()


def test_the_servers_key_is_private_and_the_same_tomorrow(state_dir: Path) -> None:
    first = server_key(state_dir)
    assert server_key(state_dir) == first
    assert (state_dir / "server_key.json").stat().st_mode & 0o777 == 0o600
    assert first.secret not in repr(first)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"public": "x", "secret": "y"}', '{"public": 1, "secret": 2}'])
def test_a_damaged_server_key_is_named_and_not_replaced(state_dir: Path, text: str) -> None:
    server_key(state_dir)
    (state_dir / "server_key.json").write_text(text)
    with pytest.raises(ConnectionFileProblem, match=r"server_key\.json"):
        server_key(state_dir)


@pytest.mark.parametrize("file", ["server_key.json", "authorized_keys.json"])
def test_a_key_file_that_others_can_read_is_refused(state_dir: Path, file: str) -> None:
    server_key(state_dir)
    AuthorizedKeys(state_dir).add("box", KeyPair.make().public)
    (state_dir / file).chmod(0o640)
    with pytest.raises(ConnectionFileProblem, match="chmod 600"):
        server_key(state_dir)
        AuthorizedKeys(state_dir).names()


def test_keys_are_added_listed_and_revoked(state_dir: Path) -> None:
    keys, key = AuthorizedKeys(state_dir), KeyPair.make().public
    keys.add("box", key)
    assert AuthorizedKeys(state_dir).names() == {"box": key}
    keys.revoke("box")
    assert AuthorizedKeys(state_dir).names() == {}


def test_another_process_sees_a_change_at_once(state_dir: Path) -> None:
    daemons, owners, key = AuthorizedKeys(state_dir), AuthorizedKeys(state_dir), KeyPair.make().public
    assert daemons.names() == {}
    owners.add("box", key)
    assert daemons.names() == {"box": key}
    owners.revoke("box")
    assert daemons.names() == {}


@pytest.mark.parametrize("name", ["", LOCAL, "a b", "../x", "x" * 65, ".x", "caf\u00e9", "a\n"])
def test_a_name_that_is_none_is_refused(state_dir: Path, name: str) -> None:
    with pytest.raises(ValueError, match="Choose a name"):
        AuthorizedKeys(state_dir).add(name, KeyPair.make().public)


def test_a_name_that_is_taken_is_refused_and_one_that_is_not_there_cannot_be_revoked(state_dir: Path) -> None:
    keys = AuthorizedKeys(state_dir)
    keys.add("box", KeyPair.make().public)
    with pytest.raises(ValueError, match="revoke box"):
        keys.add("box", KeyPair.make().public)
    with pytest.raises(ValueError, match="box"):
        keys.revoke("other")


def test_the_gate_knows_the_local_key_and_the_authorized_ones_and_nobody_else(state_dir: Path) -> None:
    local, keys, remote = KeyPair.make(), AuthorizedKeys(state_dir), KeyPair.make()
    keys.add("box", remote.public)
    gate = Gate(local, keys)
    assert gate.name_of(local.public) == LOCAL
    assert gate.name_of(remote.public) == "box"
    assert gate.name_of(KeyPair.make().public) is None
    assert [gate.admits(key) for key in (local.public, remote.public)] == [True, True]
    assert [gate.admits(key) for key in (LOCAL, "box", "", None)] == [False] * 4, "a name is no key"
    keys.revoke("box")
    keys.add("box", KeyPair.make().public)
    assert gate.name_of(remote.public) is None
    assert not gate.admits(remote.public), "the name is another key's now"


def test_a_damaged_list_lets_nobody_in_and_does_not_stop_the_daemon(state_dir: Path) -> None:
    local, keys, remote = KeyPair.make(), AuthorizedKeys(state_dir), KeyPair.make()
    keys.add("box", remote.public)
    (state_dir / "authorized_keys.json").write_text("{nonsense")
    gate = Gate(local, keys)
    assert gate.name_of(remote.public) is None
    assert gate.name_of(local.public) == LOCAL


@pytest.mark.parametrize("version", [(4, 3, 4), (4, 2, 9), (3, 9, 9)])
def test_an_old_libzmq_is_refused_with_the_remedy(version: tuple[int, int, int]) -> None:
    text = check_libzmq(version, has_curve=True)
    assert text is not None
    assert text.startswith("Install pyzmq 26 or later")
    assert ".".join(map(str, version)) in text


def test_a_libzmq_without_curve_is_refused() -> None:
    assert "CURVE" in (check_libzmq((4, 3, 5), has_curve=False) or "")


def test_this_libzmq_is_good_enough() -> None:
    assert check_libzmq() is None
    assert zmq.zmq_version_info() >= OLDEST_LIBZMQ
