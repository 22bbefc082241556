"""The daemon is told to stop: what has begun is finished or told so, what has not is refused, and it ends with 0 in time."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tutti.backend.errors import Draining
from tutti.backend.supervisor.runtime_dir import runtime_dir

from tests.chaos.jobs import ENDLESS, Waiting, latent_of, picture, sample
from tests.chaos.pace import PacedDaemon, paced
from tests.chaos.processes import descendants, left_of, wait_until
from tests.support.daemon import TUTTI

DRAINED_S = 30.0
"""25 s for what runs, as docs/reliability.md says, and the rest for the ranks to end."""
AT_ONCE_S = 5.0
STEPS = 40
CALL_S = 0.4
"""Long enough for all that has to happen within STEPS of them, short enough for them to fit into a drain."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


@pytest.fixture
def daemon(models: Path) -> Iterator[PacedDaemon]:
    with paced(models) as started:
        yield started


def terminate(daemon: PacedDaemon) -> None:
    """What a service manager does."""
    daemon.process.send_signal(signal.SIGTERM)


class TuttiStop:
    """``tutti stop``, which waits until the daemon has ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, daemon: PacedDaemon) -> None:
        command = [str(TUTTI), "stop", "--state-dir", str(daemon.state_dir)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def check_that_it_ended_well(daemon: PacedDaemon, before: list[psutil.Process], within_s: float) -> None:
    """Status 0, no process, no socket, and no address that nobody listens at."""
    assert daemon.process.wait(within_s) == 0
    assert left_of(before, within_s=0) == []
    assert not runtime_dir(daemon.state_dir).exists()
    assert not (daemon.state_dir / "connection.json").exists()


@pytest.mark.parametrize("by", ["SIGTERM", "tutti stop"])
def test_a_job_that_runs_is_finished_and_those_that_wait_or_come_are_told_to_come_back(
    daemon: PacedDaemon, by: str
) -> None:
    expected, before = picture(daemon, STEPS), descendants(daemon)
    assert picture(daemon, STEPS, seed=8) != expected, "the comparison cannot tell two pictures apart"
    stop: Callable[[PacedDaemon], None] = TuttiStop() if by == "tutti stop" else terminate
    daemon.set_pace(CALL_S)
    with Waiting(daemon, *sample(STEPS)) as runs:
        runs.wait_until("sampling", step=1)
        with Waiting(daemon, *sample(ENDLESS)) as waits, daemon.client() as late:
            waits.wait_until_accepted()
            stop(daemon)
            with pytest.raises(Draining, match="Run it again when the daemon is back"):
                waits.result()
            assert late.status().state == "draining"
            with pytest.raises(Draining, match="Send it again when the daemon is back"):
                late.sample(*sample(), lambda _: None)
        daemon.set_pace(0.0)
        assert latent_of(runs.result()) == expected
    check_that_it_ended_well(daemon, before, AT_ONCE_S)
    if isinstance(stop, TuttiStop):
        said, _ = stop.process.communicate(timeout=AT_ONCE_S)
        assert (stop.process.returncode, said.splitlines()[-1]) == (0, "Stopped.")


def test_a_job_that_does_not_end_in_time_is_told_so_and_the_daemon_ends_all_the_same(daemon: PacedDaemon) -> None:
    before = descendants(daemon)
    daemon.set_pace(CALL_S)
    with Waiting(daemon, *sample(ENDLESS)) as waiting:
        waiting.wait_until("sampling", step=1)
        told_at_s = time.monotonic()
        terminate(daemon)
        with pytest.raises(Draining, match="Run it again when the daemon is back"):
            waiting.result()
        assert waiting.ended_at_s - told_at_s > DRAINED_S / 2, "it was not given the time that it has"
    check_that_it_ended_well(daemon, before, DRAINED_S - (time.monotonic() - told_at_s))


def test_a_second_signal_ends_the_daemon_at_once_and_its_clients_hear_of_it(daemon: PacedDaemon) -> None:
    before = descendants(daemon)
    daemon.set_pace(CALL_S)
    with Waiting(daemon, *sample(ENDLESS)) as waiting:
        waiting.wait_until("sampling", step=1)
        terminate(daemon)
        wait_until(lambda: daemon.status().state == "draining", "draining")
        told_at_s = time.monotonic()
        terminate(daemon)
        with pytest.raises(Draining):
            waiting.result()
        assert waiting.ended_at_s - told_at_s < AT_ONCE_S
    check_that_it_ended_well(daemon, before, AT_ONCE_S)
