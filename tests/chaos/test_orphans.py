"""The daemon is killed with -9: whatever its ranks are doing, they are gone, and the next daemon begins with a clean house."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from tutti.backend.errors import DaemonUnreachable
from tutti.backend.supervisor.runtime_dir import runtime_dir

from tests.chaos.jobs import ENDLESS, Waiting, picture, sample
from tests.chaos.processes import descendants, kill, left_of, rank_pids
from tests.support.daemon import Daemon, private_state_dir, running

GONE_S = 5.0
"""What docs/reliability.md promises."""
SOCKETS = {"ranks", "clients"}
"""In the runtime folder: of every daemon, under the same names."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


def kill_the_daemon(daemon: Daemon) -> float:
    """As the kernel does when memory runs out; returns when."""
    killed_at_s = kill(daemon.process.pid)
    daemon.process.wait()
    return killed_at_s


def check_that_nobody_is_left(group: list[psutil.Process], killed_at_s: float) -> None:
    assert len(group) >= 3, f"a launcher and two ranks were expected: {group}"
    assert left_of(group, GONE_S - (time.monotonic() - killed_at_s)) == []


def test_a_rank_that_waits_for_work_and_one_that_hangs_end_with_the_daemon(models: Path) -> None:
    with private_state_dir() as state_dir, running(models, state_dir, ranks=2) as daemon:
        group = descendants(daemon)
        os.kill(rank_pids(daemon)[1], signal.SIGSTOP)
        assert left_of(group, within_s=0.5) == group, "they were dying before anybody was killed"
        check_that_nobody_is_left(group, kill_the_daemon(daemon))


def test_ranks_at_work_end_with_the_daemon_and_the_next_daemon_clears_up_and_gives_the_same_picture(
    models: Path,
) -> None:
    with private_state_dir() as state_dir:
        with running(models, state_dir, ranks=2) as daemon:
            expected, group = picture(daemon), descendants(daemon)
            assert picture(daemon, seed=8) != expected, "the comparison cannot tell two pictures apart"
            with Waiting(daemon, *sample(ENDLESS)) as waiting:
                waiting.wait_until("sampling", step=2)
                check_that_nobody_is_left(group, kill_the_daemon(daemon))
                with pytest.raises(DaemonUnreachable, match="tutti serve"):
                    waiting.result()
        left_behind = set(runtime_dir(state_dir).iterdir())
        assert left_behind, "a daemon that was killed is expected to leave its sockets behind: the test looks elsewhere"
        with running(models, state_dir, ranks=2) as another:
            of_the_first = {path for path in left_behind if path.name not in SOCKETS}
            assert not of_the_first & set(runtime_dir(state_dir).iterdir())
            assert picture(another) == expected
        assert not runtime_dir(state_dir).exists()
