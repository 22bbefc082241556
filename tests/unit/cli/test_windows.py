"""The command line where there is no fcntl, as on Windows: it works as a client, and says where a daemon runs.

Stands in for Windows as far as its missing modules go; no test runs on Windows itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

POSIX_ONLY = ("fcntl", "grp", "posix_ipc", "pwd", "resource", "termios")


def tutti(*words: str, state_dir: Path) -> subprocess.CompletedProcess[str]:
    """The command, in a Python without the modules that Windows lacks."""
    script = (
        f"import sys\nfor name in {POSIX_ONLY!r}:\n    sys.modules[name] = None\n"
        "from tutti.backend.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *words, "--state-dir", str(state_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def test_serve_says_in_one_sentence_where_the_daemon_runs(state_dir: Path) -> None:
    done = tutti("serve", state_dir=state_dir)
    assert done.returncode == 1
    assert done.stderr == (
        "tutti: Run `tutti serve` on Linux (on Windows: in WSL): the daemon runs there only for now.\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status",), "stopped."),
        (("stop",), ""),
        (("connect", "--forget"), "own daemon again"),
        (("doctor", "--installation"), "libzmq"),
    ],
)
def test_the_other_commands_work_without_locks(words: tuple[str, ...], said: str, state_dir: Path) -> None:
    done = tutti(*words, state_dir=state_dir)
    assert "Traceback" not in done.stderr
    assert said in done.stdout, done.stderr
