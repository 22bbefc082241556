"""Files in pieces: whole and what they say they are, or not there; and never more than there is room for."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from types import SimpleNamespace

import pytest
from tutti.backend.broker.store import KEPT_S, FileStore
from tutti.backend.errors import BadRequest, QueueFull


def digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def send(store: FileStore, data: bytes, piece: int = 10) -> int:
    digest, have = digest_of(data), 0
    while have < len(data):
        have = store.put(digest, len(data), have, data[have : have + piece])
    return have


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
    with pytest.raises(BadRequest, match="promised 25 bytes, this one 2500"):
        store.put(digest_of(data), 2500, 10, data[10:])


def test_files_that_nobody_asked_for_lately_make_room_and_no_others(tmp_path: Path) -> None:
    store, old, new, other = FileStore(tmp_path, 100), *(secrets.token_bytes(40) for _ in range(3))
    send(store, old)
    send(store, new)
    with pytest.raises(QueueFull, match="there is no room for 40 bytes"):
        send(store, other)
    path = tmp_path / f"{digest_of(old)}.safetensors"
    long_ago_s = path.stat().st_mtime - KEPT_S - 1
    os.utime(path, (long_ago_s, long_ago_s))
    send(store, other)
    assert {file.name.partition(".")[0] for file in tmp_path.iterdir()} == {digest_of(new), digest_of(other)}


def test_what_was_promised_counts_before_it_has_come(tmp_path: Path) -> None:
    store, first, second = FileStore(tmp_path, 100), secrets.token_bytes(80), secrets.token_bytes(80)
    store.put(digest_of(first), 80, 0, first[:1])
    with pytest.raises(QueueFull):
        store.put(digest_of(second), 80, 0, second[:1])


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(QueueFull, match="free space where the daemon keeps its state"):
        send(FileStore(tmp_path), secrets.token_bytes(25))
    assert list(tmp_path.iterdir()) == []
