"""The command line around a daemon: status, stop, keys, connect, and what is said when something is wrong. Real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tutti.backend.cli.commands import COMMANDS
from tutti.backend.cli.state_directory import DaemonLock
from tutti.backend.cli.status import duration, size, table
from tutti.backend.client import Client
from tutti.backend.wire.connection import read_connection, write_connection

from tests.support.addresses import free_port, needs_ipv6
from tests.support.daemon import NULL_RANKS, TUTTI, Daemon, private_state_dir, running, started, write_null_model
from tests.support.processes import our_children

DEADLINE_S = 60.0


def tutti(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, in the test's state directory."""
    return subprocess.run(
        [str(TUTTI), *words], capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=cwd, env={**os.environ, **environment}
    )  # fmt: skip


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a command that could not do its work."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def daemon(models: Path) -> Iterator[Daemon]:
    """The daemon of the tests that only look at it; the last one of them stops it."""
    with private_state_dir() as state_dir, running(models, state_dir, ranks=2, arguments=NULL_RANKS) as found:
        yield found


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return condition()


# --- a daemon that runs -------------------------------------------------------------------------------------------------------


def test_status_is_for_people_and_for_programs(daemon: Daemon) -> None:
    page = tutti("status", "--state-dir", str(daemon.state_dir)).stdout
    assert page.splitlines()[0] == "ready"
    assert re.search(r"group +2 rank\(s\) on cpu, plan auto", page)
    status = json.loads(tutti("status", "--json", TUTTI_STATE_DIR=str(daemon.state_dir)).stdout)
    assert status["state"] == "ready"
    assert [rank["rank"] for rank in status["ranks"]] == [0, 1]
    assert status["pid"] == daemon.process.pid


def test_serve_says_where_it_listens_what_it_has_and_when_it_is_ready(daemon: Daemon, models: Path) -> None:
    text = (daemon.state_dir / "logs" / "serve.log").read_text()
    assert re.search(r"listens on +tcp://127\.0\.0\.1:\d+ \(this machine only\)", text)
    assert re.search(r"models +2 checkpoint\(s\) in 2 folder\(s\)", text)
    assert str(models / "diffusion_models") in text
    assert "diffusion_models (ships with Tutti)" in text
    assert re.search(r"Ready after \d+\.\d s\. Stop with Ctrl-C or `tutti stop`\.", text)


def test_a_second_daemon_is_refused_naming_the_first(daemon: Daemon) -> None:
    before = len(daemon.tree)
    text = said(tutti("serve", "--device", "cpu", "--state-dir", str(daemon.state_dir), *NULL_RANKS))
    assert text.startswith("tutti: Use the daemon that runs already")
    assert str(daemon.process.pid) in text
    assert len(daemon.tree) == before
    assert daemon.status().state == "ready"


def test_stop_ends_the_daemon_and_everything_it_started(daemon: Daemon) -> None:
    tree = daemon.tree
    done = tutti("stop", "--state-dir", str(daemon.state_dir))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Stopped.")
    assert daemon.process.wait(DEADLINE_S) == 0
    assert wait_for(lambda: not any(process.is_running() for process in tree))
    left = {path.name for path in daemon.state_dir.iterdir()}
    assert left == {"daemon.lock", "logs", "server_key.json"}
    assert json.loads(tutti("status", "--json", "--state-dir", str(daemon.state_dir)).stdout)["state"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_idle_daemon_ends_cleanly_on_a_signal(models: Path, state_dir: Path, number: signal.Signals) -> None:
    with running(models, state_dir, ranks=1, arguments=NULL_RANKS) as daemon:
        daemon.process.send_signal(number)
        assert daemon.process.wait(DEADLINE_S) == 0


def test_a_daemon_can_be_stopped_while_its_group_is_starting(models: Path, state_dir: Path) -> None:
    with started(models, state_dir, ranks=2) as daemon:
        assert wait_for(lambda: (state_dir / "connection.json").exists())
        tree = daemon.tree
        assert tutti("stop").returncode == 0
        assert daemon.process.wait(DEADLINE_S) == 0
        assert wait_for(lambda: not any(process.is_running() for process in tree))


# --- no daemon ----------------------------------------------------------------------------------------------------------------


def test_without_a_daemon_status_says_so_and_stop_has_nothing_to_do(state_dir: Path) -> None:
    status = tutti("status")
    assert (status.returncode, status.stdout) == (1, "stopped. Start the daemon with `tutti serve`: none runs.\n")
    assert json.loads(tutti("status", "--json").stdout)["state"] == "stopped"
    stop = tutti("stop")
    assert (stop.returncode, stop.stdout) == (0, "No daemon runs.\n")


def test_the_file_of_a_killed_daemon_fools_nobody_and_the_next_one_starts(models: Path, state_dir: Path) -> None:
    with running(models, state_dir, ranks=1, arguments=NULL_RANKS) as daemon:
        daemon.process.kill()
        daemon.process.wait()
        assert (state_dir / "connection.json").exists()
        assert json.loads(tutti("status", "--json").stdout)["state"] == "stopped"
        with running(models, state_dir, ranks=1, arguments=NULL_RANKS) as second:
            assert second.status().state == "ready"


def test_the_lock_is_the_kernels_and_names_its_holder(state_dir: Path) -> None:
    lock = DaemonLock(state_dir)
    assert lock.holder() is None
    lock.take()
    assert DaemonLock(state_dir).holder() == os.getpid()
    lock.release()
    assert DaemonLock(state_dir).holder() is None


# --- mistakes at the start ----------------------------------------------------------------------------------------------------


def taken_port() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def refused(state_dir: Path, *words: str, **environment: str) -> str:
    """Start a daemon that must not start; nothing may be left of it."""
    text = said(tutti("serve", *words, **environment))
    left = {path.name for path in state_dir.iterdir()} if state_dir.is_dir() else set()
    assert left <= {"daemon.lock", "logs", "server_key.json", "authorized_keys.json"}
    assert DaemonLock(state_dir).holder() is None if state_dir.is_dir() else True
    assert not our_children()
    return text


def test_a_port_that_is_taken(state_dir: Path) -> None:
    with taken_port() as other:
        text = refused(state_dir, "--device", "cpu", "--listen", f"127.0.0.1:{other.getsockname()[1]}", *NULL_RANKS)
    assert text.startswith("tutti: Choose another port with --listen")


def test_an_address_that_is_not_this_machines(state_dir: Path, tmp_path: Path) -> None:
    tutti("keys", "add", "box", "--address", "192.0.2.7:7788", cwd=tmp_path)
    text = refused(state_dir, "--device", "cpu", "--listen", "192.0.2.7:7788", *NULL_RANKS)
    assert text.startswith("tutti: Choose an address of this machine with --listen")


def test_listening_beyond_this_machine_without_keys(state_dir: Path) -> None:
    text = refused(state_dir, "--device", "cpu", "--listen", "0.0.0.0:7788", *NULL_RANKS)
    assert text.startswith("tutti: Make a key for the other machine first (`tutti keys add NAME --address HOST:PORT`)")


@needs_ipv6
def test_a_daemon_listens_at_an_ipv6_address(models: Path, state_dir: Path, tmp_path: Path) -> None:
    address = f"[::1]:{free_port(socket.AF_INET6)}"
    assert tutti("keys", "add", "box", "--address", address, cwd=tmp_path).returncode == 0
    with running(models, state_dir, ranks=1, arguments=(*NULL_RANKS, "--listen", address)):
        assert f"listens on  tcp://{address} (this machine only)" in (state_dir / "logs" / "serve.log").read_text()
        local = replace(read_connection(state_dir / "connection.json"), local_socket=None)
        for connection in (local, read_connection(tmp_path / "box.tutti.json")):
            assert connection.endpoint == f"tcp://{address}"
            with Client(connection, client_id="aa" * 16, software="test") as client:
                assert client.connect(timeout_s=10.0).state in ("ready", "busy")


def test_no_gpu_where_one_was_asked_for(state_dir: Path) -> None:
    assert refused(state_dir, "--device", "cuda", CUDA_VISIBLE_DEVICES="").startswith("tutti: Use `--device cpu`")


def test_a_models_folder_that_is_not_there(state_dir: Path) -> None:
    assert refused(state_dir, "--device", "cpu", "--models", "/no/such").startswith("tutti: Give a folder that exists")


def test_a_plan_that_does_not_fit_the_ranks(state_dir: Path) -> None:
    assert refused(state_dir, "--device", "cpu", "--ranks", "2", "--plan", "ulysses=3").startswith(
        "tutti: Use `--ranks 3`"
    )


def test_what_is_no_plan(state_dir: Path) -> None:
    assert refused(state_dir, "--device", "cpu", "--plan", "quick").startswith(
        'tutti: Write a plan as "ulysses=2,ring=1"'
    )


def test_ranks_that_are_not_installed(state_dir: Path) -> None:
    text = refused(state_dir, "--device", "cpu", "--rank-module", "tutti.no_such_module")
    assert text.startswith("tutti: Run `python install.py backend`")


def test_a_state_directory_that_others_may_enter(state_dir: Path) -> None:
    state_dir.chmod(0o755)
    assert refused(state_dir, "--device", "cpu", *NULL_RANKS).startswith("tutti: Run `chmod 700`")


def test_a_state_directory_that_cannot_be_made(tmp_path: Path, state_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    text = refused(state_dir, "--device", "cpu", "--state-dir", str(tmp_path / "file" / "state"), *NULL_RANKS)
    assert "the state directory" in text
    assert text.startswith("tutti: Choose ")


def test_a_disk_that_cannot_be_written(state_dir: Path) -> None:
    """/proc takes no files from anybody, root included."""
    text = refused(state_dir, "--device", "cpu", "--state-dir", "/proc/tutti", *NULL_RANKS)
    assert text.startswith("tutti: Choose ")


def test_a_damaged_server_key(state_dir: Path) -> None:
    (state_dir / "server_key.json").write_text("{nonsense")
    (state_dir / "server_key.json").chmod(0o600)
    assert "server_key.json" in refused(state_dir, "--device", "cpu", *NULL_RANKS)


def test_a_group_that_does_not_come_up_ends_the_daemon_with_its_last_words(state_dir: Path, models: Path) -> None:
    text = refused(
        state_dir,
        "--device",
        "cpu",
        "--ranks",
        "1",
        "--models",
        str(models),
        "--rank-module",
        "tutti.benchmarks.report_nothing",
    )
    assert text.startswith("tutti: Run `python install.py backend`")
    text = refused(state_dir, "--device", "cpu", "--ranks", "1", "--models", str(models), "--rank-module", "this")
    assert text.startswith("tutti: Run `tutti doctor`, and look at the logs")
    assert "rank 0 ended with exit status 0" in text


# --- keys and connect ---------------------------------------------------------------------------------------------------------


def test_keys_are_made_handed_over_imported_and_revoked(state_dir: Path, tmp_path: Path, models: Path) -> None:
    assert "Nobody has a key yet" in tutti("keys", "list").stdout
    added = tutti("keys", "add", "box", "--address", "127.0.0.1:1", cwd=tmp_path)
    assert "tutti connect box.tutti.json" in added.stdout
    assert "box" in tutti("keys", "list").stdout
    assert said(tutti("keys", "add", "box", "--address", "127.0.0.1:1", "--out", str(tmp_path / "b"))).startswith(
        "tutti: Run `tutti keys revoke box`"
    )
    assert said(
        tutti("keys", "add", "other", "--address", "127.0.0.1:1", "--out", str(tmp_path / "box.tutti.json"))
    ).startswith("tutti: Choose another file")
    assert said(tutti("keys", "add", "other", "--address", "127.0.0.1", cwd=tmp_path)).startswith(
        "tutti: Give the port too"
    )
    assert tutti("keys", "revoke", "box").returncode == 0
    assert said(tutti("keys", "revoke", "box")).startswith("tutti: Name one of the keys")


def test_connect_imports_a_file_without_socket_and_process_and_forget_goes_back(
    state_dir: Path, tmp_path: Path
) -> None:
    tutti("keys", "add", "box", "--address", "127.0.0.1:9", cwd=tmp_path)
    file = tmp_path / "box.tutti.json"
    honest = read_connection(file)
    write_connection(file, replace(honest, local_socket="/tmp/elsewhere/clients", pid=1))  # as of another machine
    text = said(tutti("connect", str(file)))
    assert "The file is imported all the same" in text
    assert read_connection(state_dir / "remote.json") == honest
    assert honest.endpoint == "tcp://127.0.0.1:9"
    assert tutti("connect", "--forget").returncode == 0
    assert not (state_dir / "remote.json").exists()
    file.chmod(0o644)
    assert said(tutti("connect", str(file))).startswith("tutti: Run `chmod 600`")
    assert said(tutti("connect", str(tmp_path / "none"))).startswith("tutti: Name a file that exists")
    assert said(tutti("connect")).startswith("tutti: Name the connection file")


# --- the frame ----------------------------------------------------------------------------------------------------------------


def test_every_command_has_help_and_the_page_lists_them_all() -> None:
    page = tutti("--help").stdout
    for command in COMMANDS:
        assert command.name in page
        assert tutti(command.name, "--help").returncode == 0


def test_wrong_usage_is_told_from_what_cannot_be_done() -> None:
    assert tutti().returncode == 2
    assert tutti("dance").returncode == 2
    assert tutti("serve", "--ranks", "many").returncode == 2


def test_pages_are_laid_out_for_people() -> None:
    assert table(("a", "bb"), [("ccc", "d")]) == ["  a    bb", "  ccc  d"]
    assert [size(0), size(5 * 1024**2), size(3 * 1024**3)] == ["-", "5 MiB", "3.0 GiB"]
    assert [duration(5), duration(125), duration(7300), duration(400_000)] == ["5 s", "2 min", "2 h 1 min", "4 days"]
