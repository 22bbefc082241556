"""A client is killed: what belongs to it is given up when its lease ends, not before, except a Sample that is to be kept."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tutti.backend.broker.server import TICK_S
from tutti.backend.client.client import PING_S
from tutti.backend.errors import UnknownJob

from tests.chaos.client_process import TURNS
from tests.chaos.jobs import ENDLESS, open_trajectory, picture, sample, take_turn
from tests.chaos.pace import PacedDaemon, paced
from tests.chaos.processes import STATE_S, kill, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
DEAD, ALIVE, ENDLESS_NODE, KEPT_NODE = "d" * 32, "a" * 32, "11", "12"
CALL_S = 0.1
LATE_S = TICK_S + 1.0
"""What the daemon may need beyond the lease: it looks once a second, and a running call is not interrupted."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def daemon(models: Path) -> Iterator[PacedDaemon]:
    with paced(models) as started:
        yield started


@contextlib.contextmanager
def client_process(daemon: PacedDaemon, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A client that is somebody else's process."""
    command = [sys.executable, "-m", "tests.chaos.client_process", str(daemon.state_dir), *map(str, arguments)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], word: str, number: int = 0) -> list[str]:
    """Read what it says until it says this; the timeout of the test is the deadline."""
    assert process.stdout
    for line in process.stdout:
        said = line.split()
        if said[0] == word and not (said[1].isdigit() and int(said[1]) < number):
            return said
    raise AssertionError(f"it ended without {word!r}")


def open_jobs(daemon: PacedDaemon) -> dict[str, str]:
    """Job id and state of whatever is open."""
    return {job.job_id: job.state for job in daemon.status().jobs}


def when_they_are_gone(daemon: PacedDaemon, job_ids: set[str], since_s: float) -> dict[str, float]:
    """Seconds after which each job was not open any more."""
    gone_after_s: dict[str, float] = {}
    while job_ids > gone_after_s.keys():
        left = open_jobs(daemon)
        gone_after_s |= dict.fromkeys(job_ids - left.keys() - gone_after_s.keys(), time.monotonic() - since_s)
        assert time.monotonic() - since_s < STATE_S, f"still open: {left}"
        time.sleep(0.05)
    return gone_after_s


def test_what_a_dead_client_had_open_is_given_up_when_its_lease_ends_and_a_living_one_keeps_its_own(
    daemon: PacedDaemon,
) -> None:
    message, _ = sample(ENDLESS, node_id=ENDLESS_NODE, keep=False)
    with daemon.client() as alive, client_process(daemon, "trajectory", DEAD) as evaluating:
        open_trajectory(alive, ALIVE)
        read_until(evaluating, "turns", TURNS)
        daemon.set_pace(CALL_S)
        with client_process(daemon, "sample", ENDLESS_NODE, "--steps", ENDLESS) as sampling:
            read_until(sampling, "sampling", 2)
            assert open_jobs(daemon) == {ALIVE: "waiting", DEAD: "waiting", message.job_id: "running"}
            killed_at_s = kill(evaluating.pid)
            kill(sampling.pid)
        gone_after_s = when_they_are_gone(daemon, {DEAD, message.job_id}, killed_at_s)
        assert alive.welcome
        lease_s = alive.welcome.lease_s
        # The last sign of life came up to one ping before the death.
        too_early = {job_id: after_s for job_id, after_s in gone_after_s.items() if after_s < lease_s - PING_S - 0.5}
        too_late = {job_id: after_s for job_id, after_s in gone_after_s.items() if after_s > lease_s + LATE_S}
        assert (too_early, too_late) == ({}, {})
        assert open_jobs(daemon) == {ALIVE: "waiting"}
        with pytest.raises(UnknownJob):
            take_turn(alive, DEAD, TURNS)
        take_turn(alive, ALIVE, 1)
        alive.release(ALIVE)
    wait_until(lambda: daemon.status().state == "ready", "ready")


def test_a_sample_that_is_to_be_kept_outlives_its_client_and_waits_for_the_next_process_of_the_same_client(
    daemon: PacedDaemon,
) -> None:
    with daemon.client() as client:
        assert client.welcome
        lease_s = client.welcome.lease_s
    daemon.set_pace(0.0)
    steps = int((lease_s + 3 * LATE_S) / CALL_S)
    expected = hashlib.sha256(picture(daemon, steps)).hexdigest()
    assert hashlib.sha256(picture(daemon, steps, seed=8)).hexdigest() != expected, "the comparison cannot fail"
    finished = daemon.status().finished
    daemon.set_pace(CALL_S)
    with client_process(daemon, "sample", KEPT_NODE, "--steps", steps, "--keep") as first:
        read_until(first, "sampling", 2)
        killed_at_s = kill(first.pid)
    wait_until(lambda: time.monotonic() - killed_at_s > lease_s + LATE_S, "over: the lease")
    assert set(open_jobs(daemon).values()) == {"running"}
    daemon.set_pace(0.0)
    wait_until(lambda: daemon.status().finished == finished + 1, "finished")
    with client_process(daemon, "sample", KEPT_NODE, "--steps", steps, "--keep") as second:
        assert read_until(second, "accepted") == ["accepted", "done"]
        assert read_until(second, "latent") == ["latent", expected]
        assert second.wait(STATE_S) == 0
    assert daemon.status().finished == finished + 1
