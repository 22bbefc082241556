"""A rank dies: its job fails by name and soon, the group comes back by itself, and the next picture is the same to the bit."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tutti.backend.errors import WorkerDied
from tutti.backend.wire.messages import Accepted

from tests.chaos.jobs import ENDLESS, MODEL, OTHER_MODEL, Waiting, latent_of, picture, sample
from tests.chaos.processes import STATE_S, descendants, kill, launcher, left_of, rank_pids, wait_until
from tests.support.daemon import Daemon, private_state_dir, running

SEEN_S = 2.0
"""What "at once" means in docs/reliability.md; usually it is a tenth of that."""
GONE_S = 5.0

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


@pytest.fixture
def daemon(models: Path) -> Iterator[Daemon]:
    """A group may be restarted five times in ten minutes: every test has a daemon of its own."""
    with private_state_dir() as state_dir, running(models, state_dir, ranks=2) as started:
        yield started


@pytest.fixture
def undisturbed(daemon: Daemon) -> bytes:
    """The picture that everybody must get afterwards."""
    expected = picture(daemon)
    assert picture(daemon, seed=8) != expected, "the comparison cannot tell two pictures apart"
    return expected


def check_that_the_group_came_back(daemon: Daemon, before: list[psutil.Process], restarts: int) -> None:
    """Nothing of the old group is left, and another one stands there."""
    assert left_of(before, GONE_S) == []
    daemon.wait_until_ready()
    status = daemon.status()
    assert status.restarts == restarts + 1
    assert not {rank.pid for rank in status.ranks} & {process.pid for process in before}


def strike_at_work(daemon: Daemon, victim: int, number: int, cause: str, undisturbed: bytes) -> None:
    """Send a process of the group a signal in the middle of a job, and see what comes of it."""
    before, restarts = descendants(daemon), daemon.status().restarts
    with Waiting(daemon, *sample(ENDLESS)) as waiting:
        waiting.wait_until("sampling", step=2)
        struck_at_s = kill(victim, number)
        with pytest.raises(WorkerDied) as died:
            waiting.result()
    assert waiting.ended_at_s - struck_at_s < SEEN_S
    sentence = rf"Run it again when the worker group is back: {re.escape(cause)} at step \d+ of {ENDLESS}\."
    assert re.match(sentence, died.value.message)
    status = daemon.status()
    assert (status.state, status.reason) == ("restarting", cause)
    check_that_the_group_came_back(daemon, before, restarts)
    assert picture(daemon) == undisturbed


def test_a_job_whose_rank_is_killed_fails_with_its_name_and_the_next_one_is_right(
    daemon: Daemon, undisturbed: bytes
) -> None:
    for rank, number in ((0, signal.SIGKILL), (1, signal.SIGKILL), (0, signal.SIGSEGV)):
        cause = f"rank {rank} was killed by signal {int(number)} ({number.name})"
        strike_at_work(daemon, rank_pids(daemon)[rank], number, cause, undisturbed)


def test_the_rank_that_was_killed_is_named_even_if_the_others_have_followed_it_before_anybody_looks(
    daemon: Daemon,
) -> None:
    ranks, watcher = [psutil.Process(pid) for pid in rank_pids(daemon)], launcher(daemon)
    with Waiting(daemon, *sample(ENDLESS)) as waiting:
        waiting.wait_until("sampling", step=2)
        watcher.suspend()  # a machine under load
        kill(ranks[1].pid)
        assert left_of(ranks, STATE_S) == []
        watcher.resume()
        with pytest.raises(WorkerDied, match=r"rank 1 was killed by signal 9 \(SIGKILL\)"):
            waiting.result()


def test_a_job_whose_launcher_is_killed_fails_with_its_name_and_the_next_one_is_right(
    daemon: Daemon, undisturbed: bytes
) -> None:
    cause = "the launcher of the ranks was killed by signal 9 (SIGKILL)"
    strike_at_work(daemon, launcher(daemon).pid, signal.SIGKILL, cause, undisturbed)


def test_a_rank_that_somebody_else_tells_to_stop_takes_the_group_along_but_no_later_job(
    daemon: Daemon, undisturbed: bytes
) -> None:
    cause = "somebody other than the daemon told a rank to stop"
    strike_at_work(daemon, rank_pids(daemon)[1], signal.SIGTERM, cause, undisturbed)
    restarts = daemon.status().restarts
    kill(rank_pids(daemon)[1], signal.SIGTERM)  # between jobs: it takes its leave for a while before it ends
    assert picture(daemon) == undisturbed
    assert daemon.status().restarts == restarts + 1


def test_a_rank_that_dies_between_jobs_is_replaced_and_a_job_that_comes_meanwhile_waits(
    daemon: Daemon, undisturbed: bytes
) -> None:
    before, restarts = descendants(daemon), daemon.status().restarts
    kill(rank_pids(daemon)[0])
    wait_until(lambda: daemon.status().state == "restarting", "restarting", SEEN_S)
    assert picture(daemon) == undisturbed
    check_that_the_group_came_back(daemon, before, restarts)


def test_a_job_whose_rank_dies_while_the_model_is_loaded_is_begun_again_in_silence(
    daemon: Daemon, undisturbed: bytes
) -> None:
    for rank, model in enumerate((OTHER_MODEL, MODEL)):
        before, status, pids = descendants(daemon), daemon.status(), rank_pids(daemon)
        assert model not in status.resident  # after a restart nothing is
        os.kill(pids[1], signal.SIGSTOP)  # it will not say that it is prepared: the job stays where we want it
        with Waiting(daemon, *sample(model=model)) as waiting:
            waiting.wait_until("loading")
            assert [job.state for job in daemon.status().jobs] == ["preparing"]
            kill(pids[rank])
            assert latent_of(waiting.result()) == undisturbed
        assert sum(isinstance(item.message, Accepted) for item in waiting.seen) == 1
        check_that_the_group_came_back(daemon, before, status.restarts)
        assert daemon.status().failed == status.failed
