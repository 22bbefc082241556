"""The supervisor's small parts: the ranks' environment, reports, logs, rendezvous."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tutti.backend.supervisor.environment import RankEnvironment, available_cores
from tutti.backend.supervisor.launch import _report_first_end
from tutti.backend.supervisor.logs import last_lines, rotate
from tutti.backend.supervisor.processes import HeldProcess
from tutti.backend.supervisor.rendezvous import C10dRendezvous, FileRendezvous
from tutti.backend.supervisor.reports import (
    FAILED_ALONE_STATUS,
    FOLLOWS_STATUS,
    NOT_STARTED_STATUS,
    OUT_OF_MEMORY_STATUS,
    LauncherFailed,
    RankEnded,
    RanksStarted,
    first_cause,
    how_it_ended,
    read_report,
    write_report,
)
from tutti.backend.worker.failure import EXIT_FAILED_ALONE, EXIT_GROUP_BROKEN, EXIT_NOT_STARTED, EXIT_OUT_OF_MEMORY


def environment(**changes: object) -> RankEnvironment:
    values = {
        "token": "t" * 64, "incarnation": "i", "group_id": 0, "rank_endpoint": "ipc:///r", "shared_folder": "/shared", "liveness": "/l", "init_method": "file:///s",
        "device": "cpu", "transport": "", "world_size": 2,
    }  # fmt: skip
    return RankEnvironment(**(values | changes))  # type: ignore[arg-type]


def test_ranks_find_everything_in_their_environment() -> None:
    found = environment().variables({"PATH": "/bin", "TUTTI_NULL_STEP_S": "1"})
    assert {name: found[name] for name in found if name.startswith("TUTTI_")} == {
        "TUTTI_TOKEN": "t" * 64, "TUTTI_INCARNATION": "i", "TUTTI_GROUP_ID": "0", "TUTTI_RANK_ENDPOINT": "ipc:///r", "TUTTI_SHARED_FOLDER": "/shared",
        "TUTTI_LIVENESS": "/l", "TUTTI_INIT_METHOD": "file:///s", "TUTTI_DEVICE": "cpu", "TUTTI_TRANSPORT": "", "TUTTI_COMPILE": "auto", "TUTTI_NULL_STEP_S": "1",
    }  # fmt: skip
    assert found["PATH"] == "/bin"


def test_on_one_host_the_ranks_talk_over_loopback_whatever_the_user_set() -> None:
    found = environment().variables({"GLOO_SOCKET_IFNAME": "eth0"})
    assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("lo", "lo")
    assert "GLOO_SOCKET_IFNAME" not in environment(one_host=False).variables({})


def test_cores_are_shared_between_ranks_unless_the_user_decided() -> None:
    assert environment().variables({})["OMP_NUM_THREADS"] == str(max(1, available_cores() // 2))
    assert environment().variables({"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"


def test_compiled_code_goes_where_the_daemon_says_and_is_made_by_as_many_processes_as_there_are_cores() -> None:
    found = environment(compile="blocks", compiled_folder="/state/compiled").variables({})
    assert found["TUTTI_COMPILE"] == "blocks"
    assert found["TORCHINDUCTOR_CACHE_DIR"] == "/state/compiled"
    assert found["TUTTI_CACHE_FOLDER"] == "/state/compiled"
    assert found["TRITON_CACHE_DIR"] == "/state/compiled/triton"
    assert found["TORCHINDUCTOR_COMPILE_THREADS"] == str(min(8, max(1, available_cores() // 2)))
    assert "TORCHINDUCTOR_CACHE_DIR" not in environment().variables({}), "torch keeps it where it likes"


def test_what_a_torchrun_around_the_daemon_set_does_not_reach_the_ranks() -> None:
    found = environment().variables({"RANK": "5", "MASTER_ADDR": "far", "TORCHELASTIC_RUN_ID": "x"})
    assert not {"RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & set(found)


@pytest.mark.parametrize(
    "report",
    [
        RanksStarted(pids=(4, 5)),
        RankEnded(rank=1, pid=5, signal=9, status=None),
        LauncherFailed(error="ImportError"),
    ],
)
def test_a_report_arrives_as_it_was_sent(report: RanksStarted | RankEnded | LauncherFailed) -> None:
    read_fd, write_fd = os.pipe()
    try:
        write_report(write_fd, report)
        assert read_report(os.read(read_fd, 4096).rstrip(b"\n")) == report
    finally:
        os.close(read_fd)
        os.close(write_fd)


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b"\xff", b'{"report": "Other"}', b'{"report": "RankEnded", "rank": 1}']
)
def test_a_line_that_is_no_report_is_ignored(line: bytes) -> None:
    assert read_report(line) is None


def test_a_report_that_is_too_long_is_cut_and_still_one() -> None:
    read_fd, write_fd = os.pipe()
    try:
        write_report(write_fd, LauncherFailed(error="\u00e9" * 5000))
        assert read_report(os.read(read_fd, 8192).rstrip(b"\n")) == LauncherFailed(error="\u00e9" * 200)
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_a_report_to_nobody_is_no_error() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        write_report(write_fd, LauncherFailed(error="x"))
    finally:
        signal.signal(signal.SIGPIPE, before)
        os.close(write_fd)


def test_an_end_is_told_with_the_signal_or_the_status() -> None:
    assert how_it_ended(9, None) == "was killed by signal 9 (SIGKILL)"
    assert how_it_ended(64, None) == "was killed by signal 64 (SIGRTMAX)"
    assert how_it_ended(None, 70).startswith("left because the ranks fell out of step or lost one another")
    assert how_it_ended(None, 71).startswith("left because memory ran out on a rank (use a smaller picture")
    assert how_it_ended(None, 72).startswith("left because a call failed and the ranks could not go on together")
    assert how_it_ended(None, 73) == "could not start (its log says why)"
    assert how_it_ended(None, 0) == "ended with exit status 0"
    assert how_it_ended(None, 3) == "ended with exit status 3"
    assert RankEnded(rank=1, pid=5, signal=11, status=None).cause() == "rank 1 was killed by signal 11 (SIGSEGV)"


@pytest.mark.parametrize(
    ("ends", "blamed"),
    [
        ([(0, None, 70), (1, 9, None)], 1),
        ([(0, None, 70), (1, None, 71)], 1),
        ([(0, None, 70), (1, None, 72)], 1),
        ([(0, None, 1), (1, None, 70), (2, 11, None)], 2),
        ([(0, None, 70), (1, None, 0)], 1),
        ([(1, None, 70), (0, None, 70)], 0),
        ([(0, 15, None), (1, 9, None)], 1),
        ([(0, 15, None), (1, None, 1)], 1),
        ([(0, None, 70), (1, 15, None)], 1),
        ([], None),
    ],
)
def test_of_ranks_that_ended_together_the_one_that_explains_the_others_is_blamed(
    ends: list[tuple[int, int | None, int | None]], blamed: int | None
) -> None:
    found = first_cause([RankEnded(rank=rank, pid=5, signal=by, status=status) for rank, by, status in ends])
    assert (found.rank if found else None) == blamed


def test_a_rank_whose_end_the_agent_has_taken_is_left_to_the_agent_to_name() -> None:
    """The agent takes rank 1's status, then ends rank 0: of what can still be seen, only rank 0's end is left, and it is the wrong one."""
    ranks = {rank: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for rank in range(2)}
    for process in ranks.values():
        process.kill()
    ranks[1].wait(10)
    seen, told = os.pipe()
    _report_first_end({rank: process.pid for rank, process in ranks.items()}, told)
    ranks[0].wait(10)
    os.close(told)
    assert os.read(seen, 4096) == b""
    os.close(seen)


def test_the_statuses_that_mean_something_are_the_workers_own() -> None:
    assert (FOLLOWS_STATUS, OUT_OF_MEMORY_STATUS) == (EXIT_GROUP_BROKEN, EXIT_OUT_OF_MEMORY)
    assert (FAILED_ALONE_STATUS, NOT_STARTED_STATUS) == (EXIT_FAILED_ALONE, EXIT_NOT_STARTED)


def test_the_last_five_logs_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    for start in range(8):
        rotate(log)
        log.write_text(str(start))
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {
        "rank-0.log": "7",
        "rank-0.log.1": "6",
        "rank-0.log.2": "5",
        "rank-0.log.3": "4",
        "rank-0.log.4": "3",
    }


def test_the_end_of_a_log_is_short_and_may_be_missing(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_lines(log) == ""
    log.write_text("\n".join(f"line {number}" for number in range(5000)) + "\n\n")
    assert last_lines(log, count=3).splitlines() == ["line 4998", "line 4999"]


def test_the_file_rendezvous_makes_and_removes_its_stores(tmp_path: Path) -> None:
    rendezvous = FileRendezvous(directory=tmp_path / "stores")
    rendezvous.prepare()
    (tmp_path / "stores" / "ranks").write_text("")
    assert rendezvous.init_method == f"file://{tmp_path}/stores/ranks"
    assert rendezvous.arguments() == ["--rendezvous", "file", "--directory", f"{tmp_path}/stores"]
    rendezvous.clean_up()
    rendezvous.clean_up()
    assert not (tmp_path / "stores").exists()


def test_several_hosts_meet_over_c10d() -> None:
    rendezvous = C10dRendezvous(endpoint="10.0.0.1:29500", run_id="r", hosts=3)
    assert rendezvous.init_method == "env://"
    assert rendezvous.arguments()[:4] == ["--rendezvous", "c10d", "--endpoint", "10.0.0.1:29500"]


def test_a_held_process_is_killed_with_what_it_started_in_its_session() -> None:
    code = (
        "import subprocess, sys, time; c = subprocess.Popen(['sleep', '60']); print(c.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    child = HeldProcess.hold(int(process.stdout.readline()))
    held = HeldProcess.hold(process.pid)
    assert held is not None
    assert child is not None
    assert not held.has_ended()
    held.kill()
    process.wait(20)
    process.stdout.close()
    deadline = 200
    while not child.has_ended() and deadline:
        deadline -= 1
        signal.sigtimedwait([], 0.05)
    assert held.has_ended()
    assert child.has_ended()
    held.kill()
    held.release()
    child.release()


def test_a_process_that_has_ended_cannot_be_held() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert HeldProcess.hold(process.pid) is None
