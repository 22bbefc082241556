"""No orphans: whoever watches ends when the daemon does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tutti.backend.supervisor.liveness import Lifeline, watch

DEADLINE_S = 20.0
WATCHER = (
    "from tutti.backend.supervisor.liveness import watch; watch(); print('up', flush=True); import time; time.sleep(60)"
)


def start(path: Path | None) -> subprocess.Popen[str]:
    environment = {**os.environ, **({"TUTTI_LIVENESS": str(path)} if path else {})}
    return subprocess.Popen([sys.executable, "-c", WATCHER], stdout=subprocess.PIPE, text=True, env=environment)


def ends_by_kill(process: subprocess.Popen[str]) -> bool:
    try:
        return process.wait(DEADLINE_S) == -signal.SIGKILL
    finally:
        process.kill()
        if process.stdout:
            process.stdout.close()


def test_a_watcher_ends_when_the_line_is_cut(tmp_path: Path) -> None:
    line = Lifeline(tmp_path / "alive")
    process = start(line.path)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    line.cut()
    assert ends_by_kill(process)
    assert not line.path.exists()


def test_a_watcher_that_comes_after_the_line_was_cut_ends_at_once(tmp_path: Path) -> None:
    line = Lifeline(tmp_path / "alive")
    line.cut()
    assert ends_by_kill(start(line.path))


def test_a_watcher_of_a_line_that_nobody_holds_any_more_ends_at_once(tmp_path: Path) -> None:
    """The daemon was killed before the rank opened the FIFO: the file is there, its writer is not."""
    os.mkfifo(tmp_path / "alive")
    assert ends_by_kill(start(tmp_path / "alive"))


def test_a_watcher_lives_while_the_line_is_held(tmp_path: Path) -> None:
    """Negative control."""
    line = Lifeline(tmp_path / "alive")
    process = start(line.path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    finally:
        line.cut()
        ends_by_kill(process)


def test_the_line_is_private(tmp_path: Path) -> None:
    line = Lifeline(tmp_path / "alive")
    try:
        assert line.path.stat().st_mode & 0o777 == 0o600
    finally:
        line.cut()


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals exist only on Linux")
def test_a_watcher_without_a_line_ends_with_its_parent() -> None:
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {WATCHER!r}], stdout=subprocess.PIPE, text=True)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    assert eventually(lambda: not is_running(child))


def test_a_process_can_choose_its_own_end(tmp_path: Path) -> None:
    line, over = Lifeline(tmp_path / "alive"), threading.Event()
    code = (
        "import sys, threading\n"
        "from tutti.backend.supervisor.liveness import watch\n"
        "over = threading.Event(); watch(sys.argv[1], over.set); print('up', flush=True); over.wait(20); print('end')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(line.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    line.cut()
    assert process.communicate(timeout=DEADLINE_S)[0] == "end\n"
    assert not over.is_set()
    assert watch is not None


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.02)
    return False
