"""The frame itself: each kind of leak is seen, an avoidable skip fails in CI, and none of it fires without a cause."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.leaks import LeakWatch

REPOSITORY = Path(__file__).resolve().parents[2]
Suite = Callable[..., subprocess.CompletedProcess[str]]
"""Runs pytest on the text of one test file, with these environment variables."""


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LeakWatch:
    monkeypatch.setenv("TUTTI_TEST_SESSION", "replaced by the constructor and put back afterwards")
    return LeakWatch(tmp_path)


def test_nothing_is_reported_when_nothing_is_left(watch: LeakWatch, tmp_path: Path) -> None:
    before = watch.snapshot()
    subprocess.run([sys.executable, "-c", ""], check=True)
    with socket.socket(), open(tmp_path / "file", "w"):
        pass
    (tmp_path / "file").unlink()
    assert watch.leaked_since(before) == []


def test_a_child_is_reported_and_killed(watch: LeakWatch) -> None:
    before = watch.snapshot()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (leak,) = watch.leaked_since(before, grace_s=0.2)
    assert f"process {child.pid}" in leak
    assert child.wait(timeout=10) != 0


def test_an_orphan_in_a_session_of_its_own_is_reported_and_killed(watch: LeakWatch) -> None:
    before = watch.snapshot()
    script = (
        "import subprocess, sys\nnull = subprocess.DEVNULL\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "print(subprocess.Popen(command, start_new_session=True, stdout=null, stderr=null).pid)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    orphan = int(done.stdout)
    (leak,) = watch.leaked_since(before, grace_s=0.2)
    assert f"process {orphan}" in leak
    wait_until(lambda: not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE)


def test_a_thread_is_reported(watch: LeakWatch) -> None:
    before, stop = watch.snapshot(), threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-over")
    thread.start()
    leaks = watch.leaked_since(before, grace_s=0.2)
    stop.set()
    thread.join()
    assert leaks == ["thread 'left-over'"]


def test_a_socket_is_reported(watch: LeakWatch) -> None:
    before = watch.snapshot()
    with socket.socket():
        (leak,) = watch.leaked_since(before, grace_s=0.2)
    assert "socket:" in leak


def test_a_temporary_file_is_reported(watch: LeakWatch, tmp_path: Path) -> None:
    before = watch.snapshot()
    (tmp_path / "forgotten").touch()
    assert watch.leaked_since(before, grace_s=0.2) == [f"temporary file {tmp_path / 'forgotten'}"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory has no folder here: only on Linux")
def test_shared_memory_is_reported(watch: LeakWatch) -> None:
    before, path = watch.snapshot(), Path(f"/dev/shm/tutti-leak-{os.getpid()}")
    path.touch()
    leaks = watch.leaked_since(before, grace_s=0.2)
    path.unlink()
    assert leaks == [f"shared memory {path}"]


def wait_until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Runs pytest on one test file under our conftest and settings, in a folder of its own."""
    (tmp_path / "tests" / "support").mkdir(parents=True)
    for name in ("conftest.py", "support/leaks.py"):
        shutil.copy(REPOSITORY / "tests" / name, tmp_path / "tests" / name)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)

    def run(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "tests" / "test_one.py").write_text(text)
        environment = {name: value for name, value in os.environ.items() if name != "TUTTI_CI"}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**environment, **variables}
        )

    return run


def test_a_test_that_leaks_fails(suite: Suite) -> None:
    done = suite("import socket\nkept = []\ndef test_leaks():\n    kept.append(socket.socket())\n")
    assert done.returncode == 1
    assert "the test left behind" in done.stdout
    assert "1 passed, 1 error" in done.stdout.splitlines()[-1]


def test_an_avoidable_skip_fails_in_ci_only(suite: Suite) -> None:
    text = "import pytest\ndef test_one():\n    pytest.skip('ComfyUI is not installed')\n"
    assert suite(text).returncode == 0
    done = suite(text, TUTTI_CI="1")
    assert done.returncode == 1
    assert "skipped in CI, which could have run it" in done.stdout


def test_an_avoidable_skip_of_a_whole_file_fails_in_ci(
    suite: Suite,
) -> None:
    done = suite("import pytest\npytest.importorskip('no_such_module')\n", TUTTI_CI="1")
    assert done.returncode != 0
    assert "skipped in CI, which could have run it" in done.stdout


def test_a_skip_for_want_of_a_gpu_is_allowed_in_ci_and_listed(
    suite: Suite,
) -> None:
    done = suite("import pytest\ndef test_one():\n    pytest.skip('needs an NVIDIA GPU')\n", TUTTI_CI="1")
    assert done.returncode == 0
    assert "needs an NVIDIA GPU" in done.stdout


def test_warnings_are_errors_and_markers_are_strict(suite: Suite) -> None:
    assert suite("import warnings\ndef test_one():\n    warnings.warn('old')\n").returncode == 1
    assert suite("import pytest\n@pytest.mark.unheard_of\ndef test_one(): pass\n").returncode != 0


def test_hypothesis_works_inside_the_frame(suite: Suite) -> None:
    text = (
        "from hypothesis import given, strategies as st\n@given(st.integers())\ndef test_one(n: int): assert n == n\n"
    )
    done = suite(text)
    assert done.returncode == 0, done.stdout


def test_the_state_directory_is_private_short_and_the_one_in_use(state_dir: Path) -> None:
    assert os.environ["TUTTI_STATE_DIR"] == str(state_dir)
    assert state_dir.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(state_dir)) < 70


def test_the_repository_root_is_not_on_the_path() -> None:
    """Else ``kernels`` and ``backend`` would be top-level modules, and diffusers would import our ``kernels``."""
    assert REPOSITORY not in [Path(entry or ".").resolve() for entry in sys.path]
