"""``install.py connect``: a laptop with ComfyUI and no back end uses another box. The real install.py, with the standard library only."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tutti.backend.wire.connection import Connection, find_connection, write_connection

from tests.support.toy_pack import REPOSITORY

BOX = Connection(
    endpoint="tcp://gpu-box:7860", server_public_key="s" * 40, client_public_key="p" * 40, client_secret_key="k" * 40
)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A connection file as `tutti keys add` writes it."""
    write_connection(tmp_path / "laptop.tutti.json", BOX)
    return tmp_path / "laptop.tutti.json"


def install_connect(*words: str, state_dir: Path) -> subprocess.CompletedProcess[str]:
    """Without site-packages: neither pyzmq nor msgpack, let alone torch."""
    command = [sys.executable, "-I", "-S", str(REPOSITORY / "install.py"), "connect", *words]
    environment = {**os.environ, "TUTTI_STATE_DIR": str(state_dir)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_the_imported_file_is_the_one_that_comfyui_then_uses(given: Path, tmp_path: Path) -> None:
    state_dir = tmp_path / "new" / "state"
    done = install_connect(str(given), state_dir=state_dir)
    assert done.returncode == 0, done.stderr
    assert "tcp://gpu-box:7860" in done.stdout
    assert BOX.client_secret_key not in done.stdout + done.stderr
    assert find_connection(state_dir) == BOX
    if os.name == "posix":
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((state_dir / "remote.json").stat().st_mode) == 0o600
    assert install_connect("--forget", state_dir=state_dir).returncode == 0
    assert not (state_dir / "remote.json").exists()


def test_no_socket_and_no_process_is_taken_from_the_file(given: Path, tmp_path: Path) -> None:
    write_connection(given, replace(BOX, local_socket="/tmp/elsewhere/clients", pid=1))
    assert install_connect(str(given), state_dir=tmp_path / "state").returncode == 0
    assert find_connection(tmp_path / "state") == BOX


def test_a_dry_run_writes_nothing(given: Path, tmp_path: Path) -> None:
    done = install_connect(str(given), "--dry-run", state_dir=tmp_path / "state")
    assert f"would write {tmp_path / 'state' / 'remote.json'}" in done.stdout
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("name", ["endpoint", "server_public_key", "client_public_key", "client_secret_key"])
@pytest.mark.parametrize("change", ["missing", "wrong"])
def test_a_damaged_file_is_refused_and_what_was_imported_before_stays(
    given: Path, tmp_path: Path, name: str, change: str
) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir(mode=0o700)
    write_connection(state_dir / "remote.json", BOX)
    fields = json.loads(given.read_text())
    fields[name] = "not so"
    if change == "missing":
        del fields[name]
    given.write_text(json.dumps(fields))
    done = install_connect(str(given), state_dir=state_dir)
    assert done.returncode == 1
    assert "cannot be imported" in done.stderr
    assert "What to do:" in done.stderr
    assert find_connection(state_dir) == BOX


@pytest.mark.skipif(os.name != "posix", reason="not Windows: access lists protect files there")
def test_a_file_and_a_folder_that_others_can_read_are_refused(given: Path, tmp_path: Path) -> None:
    given.chmod(0o644)
    assert "chmod 600" in install_connect(str(given), state_dir=tmp_path / "state").stderr
    given.chmod(0o600)
    (tmp_path / "open").mkdir(mode=0o755)
    assert "chmod 700" in install_connect(str(given), state_dir=tmp_path / "open").stderr
    assert not (tmp_path / "open" / "remote.json").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "none.json does not exist" in install_connect("none.json", state_dir=tmp_path / "state").stderr
    assert "install.py connect FILE" in install_connect(state_dir=tmp_path / "state").stderr
