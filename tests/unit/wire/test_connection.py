"""The state directory and its files: private, whole, and never trusted."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tutti.backend.errors import ConnectionFileProblem
from tutti.backend.wire import connection as c
from tutti.backend.wire.connection import Connection

LOCAL = Connection(
    endpoint="tcp://127.0.0.1:41234",
    server_public_key="rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",
    client_public_key="Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID",
    client_secret_key="D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs",
    pid=4711,
    local_socket="/run/user/1000/tutti/clients",
)
REMOTE = replace(LOCAL, endpoint="tcp://192.0.2.7:5555", pid=None, local_socket=None)

posix = pytest.mark.skipif(os.name != "posix", reason="file modes: not Windows")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    """A file as somebody else might have left it."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def fields(**changes: Any) -> str:
    """The text of a connection file with some fields changed; None as a value stands as null."""
    whole = {name: getattr(LOCAL, name) for name in Connection.__dataclass_fields__} | changes
    return json.dumps(whole)


# --- Where ------------------------------------------------------------------------------------------------------------


def test_the_state_directory_is_the_one_the_user_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUTTI_STATE_DIR", str(tmp_path / "mine"))
    assert c.state_dir() == tmp_path / "mine"


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_the_state_directory_lies_where_the_platform_keeps_state(
    platform: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TUTTI_STATE_DIR")
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    expected = {
        "linux": tmp_path / "xdg" / "tutti",
        "darwin": tmp_path / "home" / "Library" / "Application Support" / "tutti" / "state",
        "win32": tmp_path / "local" / "tutti" / "state",
    }
    assert c.state_dir() == expected[platform]


def test_an_empty_variable_counts_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUTTI_STATE_DIR", "")
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert c.state_dir() == tmp_path / ".local" / "state" / "tutti"


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_state_directory_is_private_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        c.ensure_private_dir(tmp_path / "a" / "state")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a" / "state") == 0o700
    c.ensure_private_dir(tmp_path / "a" / "state")


@posix
@pytest.mark.parametrize("mode", [0o755, 0o750, 0o705, 0o701, 0o777])
def test_a_state_directory_that_others_may_enter_is_refused(mode: int, tmp_path: Path) -> None:
    open_to_others = tmp_path / "state"
    open_to_others.mkdir()
    open_to_others.chmod(mode)
    with pytest.raises(ConnectionFileProblem, match=r"^Run `chmod 700` on state"):
        c.ensure_private_dir(open_to_others)


@posix
def test_a_state_directory_of_somebody_else_is_refused(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: state_dir.stat().st_uid + 1)
    with pytest.raises(ConnectionFileProblem, match="belongs to another user"):
        c.ensure_private_dir(state_dir)


# --- What -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", [LOCAL, REMOTE], ids=["local", "remote"])
def test_a_connection_comes_back_as_it_was_written(connection: Connection, state_dir: Path) -> None:
    c.write_connection(state_dir / "connection.json", connection)
    assert c.read_connection(state_dir / "connection.json") == connection


@posix
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_connection_file_is_private_whatever_the_umask(umask: int, state_dir: Path) -> None:
    before = os.umask(umask)
    try:
        c.write_connection(state_dir / "connection.json", LOCAL)
    finally:
        os.umask(before)
    assert mode_of(state_dir / "connection.json") == 0o600


def test_a_connection_never_shows_its_secret_key() -> None:
    assert LOCAL.client_secret_key not in repr(LOCAL)
    assert LOCAL.server_public_key in repr(LOCAL)


def test_an_imported_daemon_comes_before_the_local_one(state_dir: Path) -> None:
    c.write_connection(state_dir / "connection.json", LOCAL)
    assert c.find_connection(state_dir) == LOCAL
    c.write_connection(state_dir / "remote.json", REMOTE)
    assert c.find_connection(state_dir) == REMOTE
    assert c.find_connection() == REMOTE  # the directory of TUTTI_STATE_DIR
    (state_dir / "remote.json").unlink()
    assert c.find_connection(state_dir) == LOCAL


def test_a_damaged_import_is_an_error_and_not_the_local_daemon(state_dir: Path) -> None:
    c.write_connection(state_dir / "connection.json", LOCAL)
    write(state_dir / "remote.json", "{")
    with pytest.raises(ConnectionFileProblem, match=r"remote\.json"):
        c.find_connection(state_dir)


def test_no_daemon_at_all_is_a_missing_file(state_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        c.find_connection(state_dir)


def test_fields_of_a_later_version_are_ignored(state_dir: Path) -> None:
    path = write(state_dir / "connection.json", fields(colour="blue"))
    assert c.read_connection(path) == LOCAL


DAMAGED = {
    "empty": "",
    "cut short": fields()[:-9],
    "no JSON": "endpoint: tcp://127.0.0.1:41234",
    "an array": "[]",
    "a number": "1",
    "text that holds every name": json.dumps(" ".join(Connection.__dataclass_fields__)),
    "null": "null",
    "an empty object": "{}",
    "not UTF-8": b'{"endpoint": "\xff"}',
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtin",
    "nested 60,000 deep": "[" * 60_000,
    "60 KiB of blanks": " " * 60_000,
    "no endpoint": fields(endpoint=None),
    "an endpoint that is a number": fields(endpoint=41234),
    "an endpoint that is a web page": fields(endpoint="http://127.0.0.1:41234"),
    "an endpoint without a port": fields(endpoint="tcp://127.0.0.1"),
    "an endpoint with a wild card": fields(endpoint="tcp://127.0.0.1:*"),
    "an endpoint in this process": fields(endpoint="inproc://x"),
    "an endpoint that is not encrypted": fields(endpoint="ipc:///run/user/1000/tutti/clients"),
    "a local socket that is a number": fields(local_socket=5),
    "a local socket without a folder": fields(local_socket="clients"),
    "a local socket in the abstract space": fields(local_socket="\0clients"),
    "a local socket with a line break": fields(local_socket="/run/clients\n"),
    "a local socket with a longer path than one can have": fields(local_socket="/" + "x" * 107),
    "an endpoint with a line break": fields(endpoint="tcp://127.0.0.1:41234\n"),
    "a key that is too short": fields(server_public_key="x" * 39),
    "a key that is too long": fields(client_public_key="x" * 41),
    "a key with a blank": fields(client_secret_key=" " * 40),
    "a key that is null": fields(client_secret_key=None),
    "a key that is binary in hexadecimal": fields(client_secret_key="ab" * 32),
    "a process id that is text": fields(pid="4711"),
    "a process id that is true": fields(pid=True),
    "a process id of 0": fields(pid=0),
    "a process id of -1": fields(pid=-1),
    "a process id of 1.5": fields(pid=1.5),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_says_how_to_mend_it(text: str | bytes, state_dir: Path) -> None:
    path = write(state_dir / "connection.json", text)
    with pytest.raises(ConnectionFileProblem) as caught:
        c.read_connection(path)
    assert str(caught.value).startswith("Write connection.json again")
    assert str(state_dir) not in str(caught.value)
    assert LOCAL.client_secret_key not in str(caught.value)


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o777])
def test_a_file_that_others_can_read_or_write_is_refused(mode: int, state_dir: Path) -> None:
    path = write(state_dir / "remote.json", fields(), mode)
    with pytest.raises(ConnectionFileProblem, match=r"^Run `chmod 600` on remote\.json"):
        c.find_connection(state_dir)
    path.chmod(0o600)
    assert c.find_connection(state_dir) == LOCAL


@posix
def test_a_file_of_somebody_else_is_refused(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(state_dir / "connection.json", fields())
    monkeypatch.setattr("os.geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConnectionFileProblem, match="belongs to another user"):
        c.read_connection(path)


def test_a_file_that_we_cannot_read_is_an_error_of_ours(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(state_dir / "connection.json", fields())

    def denied(*_: object) -> int:  # what the system says to anybody but root; these tests may run as root
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("os.open", denied)
        with pytest.raises(ConnectionFileProblem, match="a file that you can read") as caught:
            c.read_connection(path)
    assert str(state_dir) not in str(caught.value)


def test_a_directory_in_its_place_is_refused(state_dir: Path) -> None:
    (state_dir / "connection.json").mkdir(mode=0o700)
    with pytest.raises(ConnectionFileProblem):
        c.read_connection(state_dir / "connection.json")


@posix
@pytest.mark.timeout(10)
def test_a_pipe_in_its_place_does_not_make_us_wait(state_dir: Path) -> None:
    os.mkfifo(state_dir / "connection.json", 0o600)
    with pytest.raises(ConnectionFileProblem, match="it is no file of Tutti"):
        c.read_connection(state_dir / "connection.json")


def test_a_huge_file_is_refused_unread(state_dir: Path) -> None:
    with (state_dir / "connection.json").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no room
    (state_dir / "connection.json").chmod(0o600)
    with pytest.raises(ConnectionFileProblem, match="it is no file of Tutti"):
        c.read_connection(state_dir / "connection.json")


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_a_reader_sees_the_old_file_or_the_new_one_and_never_a_part(state_dir: Path) -> None:
    path, done = state_dir / "connection.json", threading.Event()
    c.write_connection(path, LOCAL)

    def rewrite() -> None:
        for round_ in range(300):
            c.write_connection(path, (LOCAL, REMOTE)[round_ % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(c.read_connection(path))
    writer.join()
    assert seen <= {LOCAL, REMOTE}
    assert c.read_connection(path) == REMOTE


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = state_dir / "connection.json"
    c.write_connection(path, LOCAL)

    def full(_: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        c.write_connection(path, REMOTE)
    assert c.read_connection(path) == LOCAL
    assert [entry.name for entry in state_dir.iterdir()] == ["connection.json"]


def test_writing_leaves_no_temporary_file(state_dir: Path) -> None:
    c.write_connection(state_dir / "connection.json", LOCAL)
    c.write_private(state_dir / "folders.json", "{}")
    assert sorted(entry.name for entry in state_dir.iterdir()) == ["connection.json", "folders.json"]


def test_a_file_that_must_be_new_does_not_replace_another(state_dir: Path) -> None:
    path = write(state_dir / "client_id", "first")
    with pytest.raises(FileExistsError):
        c.write_private(path, "second", keep_existing=True)
    assert path.read_text(encoding="ascii") == "first"
    assert [entry.name for entry in state_dir.iterdir()] == ["client_id"]


# --- The client's id --------------------------------------------------------------------------------------------------


def test_an_installation_keeps_its_id(state_dir: Path) -> None:
    first = c.client_id(state_dir)
    assert len(first) == 32
    assert set(first) <= set("0123456789abcdef")
    assert c.client_id(state_dir) == first
    assert c.client_id() == first


def test_two_installations_have_two_ids(tmp_path: Path) -> None:
    assert c.client_id(tmp_path / "a") != c.client_id(tmp_path / "b")


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, b"\xff" * 32, "0" * 16 + "\n" + "0" * 16])
def test_a_damaged_id_is_replaced_by_a_new_one(text: str | bytes, state_dir: Path) -> None:
    write(state_dir / "client_id", text)
    fresh = c.client_id(state_dir)
    assert len(fresh) == 32
    assert c.client_id(state_dir) == fresh


def test_a_line_end_after_an_id_does_not_matter(state_dir: Path) -> None:
    write(state_dir / "client_id", "ab" * 16 + "\n")
    assert c.client_id(state_dir) == "ab" * 16


def test_processes_that_start_together_agree_on_one_id(state_dir: Path) -> None:
    start, found = threading.Barrier(8), []

    def ask() -> None:
        start.wait(timeout=10)
        found.append(c.client_id(state_dir))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {c.client_id(state_dir)}
