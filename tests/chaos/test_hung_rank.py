"""A rank hangs without dying (it is stopped, as by a kernel or a disk that does not come back): the group is started again, in time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tutti.backend.wire.messages import Accepted

from tests.chaos.jobs import ENDLESS, OTHER_MODEL, Waiting, latent_of, picture, sample
from tests.chaos.processes import descendants, left_of, rank_pids, wait_until
from tests.support.daemon import Daemon, private_state_dir, running

IMPATIENT = Path(__file__).with_name("paced") / "impatient.py"
LEAVE_S, PREPARE_S = 2.0, 5.0
"""As in ``paced/impatient.py``; 120 s each in a daemon that nobody made impatient."""
LATE_S = 5.0
"""What a loaded machine may need beyond a deadline to see that it has passed and to kill the group."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


@pytest.fixture
def daemon(models: Path) -> Iterator[Daemon]:
    program = (sys.executable, str(IMPATIENT))
    with private_state_dir() as state_dir, running(models, state_dir, ranks=2, program=program) as started:
        yield started


def stop_rank_1(daemon: Daemon) -> float:
    """It does nothing any more, and does not die; returns since when."""
    os.kill(rank_pids(daemon)[1], signal.SIGSTOP)
    return time.monotonic()


def test_a_cancelled_job_whose_rank_hangs_costs_the_group_and_no_later_job(daemon: Daemon) -> None:
    expected, before, restarts = picture(daemon), descendants(daemon), daemon.status().restarts
    with Waiting(daemon, *sample(ENDLESS)) as waiting:
        waiting.wait_until("sampling", step=2)
        stopped_at_s = stop_rank_1(daemon)
    wait_until(lambda: daemon.status().state == "restarting", "given up", LEAVE_S + LATE_S)
    assert time.monotonic() - stopped_at_s > LEAVE_S, "it was not given its time"
    status = daemon.status()
    assert status.reason == "ranks 0 and 1 did not leave the job within 2 s", "rank 0 waits for rank 1 in a collective"
    assert (status.jobs, status.failed) == ((), 0), "it was cancelled, and did not fail"
    assert left_of(before, LATE_S) == [], "a stopped process is killed all the same"
    assert picture(daemon) == expected
    assert daemon.status().restarts == restarts + 1


def test_a_job_whose_rank_hangs_while_the_model_is_loaded_is_begun_again_in_silence(daemon: Daemon) -> None:
    expected, status = picture(daemon), daemon.status()
    assert OTHER_MODEL not in status.resident
    stopped_at_s = stop_rank_1(daemon)
    with Waiting(daemon, *sample(model=OTHER_MODEL)) as waiting:
        waiting.wait_until("loading")
        wait_until(lambda: daemon.status().state == "restarting", "given up", PREPARE_S + LATE_S)
        assert time.monotonic() - stopped_at_s > PREPARE_S, "it was not given its time"
        assert daemon.status().reason == "rank 1 gave no sign of life for 5 s while a job was made ready"
        assert latent_of(waiting.result()) == expected
    assert sum(isinstance(item.message, Accepted) for item in waiting.seen) == 1
    assert (daemon.status().restarts, daemon.status().failed) == (status.restarts + 1, status.failed)


def test_a_cancel_without_a_hung_rank_costs_nothing(daemon: Daemon) -> None:
    """The control: the deadlines alone restart nobody."""
    restarts, pids = daemon.status().restarts, rank_pids(daemon)
    with Waiting(daemon, *sample(ENDLESS)) as waiting:
        waiting.wait_until("sampling", step=2)
    with pytest.raises(AssertionError, match="not given up"):
        wait_until(lambda: daemon.status().state == "restarting", "given up", LEAVE_S + 2.0)
    assert (daemon.status().restarts, rank_pids(daemon)) == (restarts, pids), daemon.log_text()
