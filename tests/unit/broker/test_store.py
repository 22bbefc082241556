"""Files in pieces: whole and what they say they are, or not there; and never more than there is room for."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from types import SimpleNamespace

import pytest
from tutti.backend.broker.store import IDLE_S, KEPT_S, FileStore
from tutti.backend.errors import BadRequest, QueueFull


def digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def send(store: FileStore, data: bytes, piece: int = 10) -> int:
    digest, have = digest_of(data), 0
    while have < len(data):
        have = store.put(digest, len(data), have, data[have : have + piece])
    return have


def left_alone(path: Path, for_s: float) -> None:
    """Nobody has touched the file for so long."""
    then_s = path.stat().st_mtime - for_s - 1
    os.utime(path, (then_s, then_s))


def test_a_file_is_there_when_its_last_piece_is(tmp_path: Path) -> None:
    store, data = FileStore(tmp_path / "stored"), secrets.token_bytes(25)
    digest = digest_of(data)
    assert store.put(digest, 25, 0, None) == 0
    assert store.put(digest, 25, 0, data[:10]) == 10
    assert store.put(digest, 25, 5, data[5:10]) == 10, "a piece that does not begin where the file ends is not taken"
    assert not (tmp_path / "stored" / f"{digest}.safetensors").exists()
    assert store.put(digest, 25, 10, data[10:]) == 25
    assert (tmp_path / "stored" / f"{digest}.safetensors").read_bytes() == data
    assert store.put(digest, 25, 0, None) == 25


def test_a_daemon_that_was_started_again_goes_on_where_it_was(tmp_path: Path) -> None:
    data = secrets.token_bytes(25)
    FileStore(tmp_path).put(digest_of(data), 25, 0, data[:10])
    store = FileStore(tmp_path)
    assert store.put(digest_of(data), 25, 0, None) == 10
    assert store.put(digest_of(data), 25, 10, data[10:]) == 25
    assert (tmp_path / f"{digest_of(data)}.safetensors").read_bytes() == data


def test_bytes_that_are_not_what_their_digest_says_are_thrown_away(tmp_path: Path) -> None:
    store, data = FileStore(tmp_path), secrets.token_bytes(25)
    with pytest.raises(BadRequest, match="Send the file again: its bytes"):
        store.put(digest_of(data), 25, 0, data[::-1])
    assert list(tmp_path.iterdir()) == []
    assert send(store, data) == 25


def test_a_size_that_changes_on_the_way_is_refused(tmp_path: Path) -> None:
    store, data = FileStore(tmp_path), secrets.token_bytes(25)
    store.put(digest_of(data), 25, 0, data[:10])
    for piece in (data[10:], None):
        with pytest.raises(BadRequest, match="promised 25 bytes, this one 2500"):
            store.put(digest_of(data), 2500, 10, piece)
    assert store.put(digest_of(data), 25, 10, data[10:]) == 25


@pytest.mark.parametrize("promised", [10, 2500])
def test_an_abandoned_upload_of_another_size_does_not_stand_in_the_way(promised: int, tmp_path: Path) -> None:
    store, data = FileStore(tmp_path), secrets.token_bytes(25)
    digest = digest_of(data)
    store.put(digest, promised, 0, b"x")
    left_alone(tmp_path / f"{digest}.part", IDLE_S)
    assert store.put(digest, 25, 0, None) == 0
    assert send(store, data) == 25
    assert (tmp_path / f"{digest}.safetensors").read_bytes() == data


@pytest.mark.parametrize("there", [25, 30])
def test_what_a_restart_left_that_is_no_beginning_is_sent_again(there: int, tmp_path: Path) -> None:
    data = secrets.token_bytes(25)
    (tmp_path / f"{digest_of(data)}.part").write_bytes(secrets.token_bytes(there))
    store = FileStore(tmp_path)
    assert store.put(digest_of(data), 25, 0, None) == 0
    assert send(store, data) == 25


def test_files_that_nobody_asked_for_lately_make_room_and_no_others(tmp_path: Path) -> None:
    store, old, new, other = FileStore(tmp_path, 100), *(secrets.token_bytes(40) for _ in range(3))
    send(store, old)
    send(store, new)
    with pytest.raises(QueueFull, match="there is no room for 40 bytes"):
        send(store, other)
    path = tmp_path / f"{digest_of(old)}.safetensors"
    left_alone(path, KEPT_S)
    send(store, other)
    assert {file.name.partition(".")[0] for file in tmp_path.iterdir()} == {digest_of(new), digest_of(other)}


def test_what_was_promised_counts_before_it_has_come(tmp_path: Path) -> None:
    store, first, second = FileStore(tmp_path, 100), secrets.token_bytes(80), secrets.token_bytes(80)
    store.put(digest_of(first), 80, 0, first[:1])
    with pytest.raises(QueueFull):
        store.put(digest_of(second), 80, 0, second[:1])


def test_a_promise_that_nobody_keeps_gives_its_room_back(tmp_path: Path) -> None:
    """Four clients that died after their first byte."""
    store, data, gone = FileStore(tmp_path, 100), secrets.token_bytes(80), [digest_of(bytes([n])) for n in range(4)]
    for digest in gone:
        store.put(digest, 25, 0, b"x")
    with pytest.raises(QueueFull):
        store.put(digest_of(data), 80, 0, data[:1])
    for digest in gone[:3]:
        left_alone(tmp_path / f"{digest}.part", KEPT_S)
    with pytest.raises(QueueFull):  # the fourth still counts
        store.put(digest_of(data), 80, 0, data[:1])
    left_alone(tmp_path / f"{gone[3]}.part", KEPT_S)
    assert send(store, data) == 80
    assert [path.name for path in tmp_path.iterdir()] == [f"{digest_of(data)}.safetensors"]
    assert store.put(gone[0], 20, 0, None) == 0, "one that comes back begins anew, and may name another size"
    assert store.put(gone[0], 20, 0, b"x") == 1


def test_room_is_never_made_by_what_is_being_continued(tmp_path: Path) -> None:
    data = secrets.token_bytes(80)
    FileStore(tmp_path, 100).put(digest_of(data), 80, 0, data[:40])
    part = tmp_path / f"{digest_of(data)}.part"
    left_alone(part, KEPT_S)
    store = FileStore(tmp_path, 100)  # started again; 40 bytes of the 80 are there, which are not needed twice
    assert store.put(digest_of(data), 80, 40, data[40:60]) == 60
    assert store.put(digest_of(data), 80, 60, data[60:]) == 80
    assert (tmp_path / f"{digest_of(data)}.safetensors").read_bytes() == data


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(QueueFull, match="free space where the daemon keeps its state"):
        send(FileStore(tmp_path), secrets.token_bytes(25))
    assert list(tmp_path.iterdir()) == []
