"""A supervisor with real launchers and real (null) ranks: both ways to meet, deaths, restarts, and nothing left at the end."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import zmq
from tutti.backend.broker.events import GroupLost, GroupStarting
from tutti.backend.supervisor.budget import BudgetSettings, RestartBudget
from tutti.backend.supervisor.incarnation import GroupSettings
from tutti.backend.supervisor.rendezvous import C10dRendezvous, FileRendezvous, Rendezvous
from tutti.backend.supervisor.supervisor import Supervisor
from tutti.backend.wire import codec
from tutti.backend.wire.messages import RankHello

from tests.support.processes import our_children

DEADLINE_S = 60.0
pytestmark = pytest.mark.timeout(180)


@dataclass
class Stage:
    """The daemon's place: a socket that hears the ranks, and a supervisor that is stepped by hand."""

    settings: GroupSettings
    socket: zmq.Socket[bytes]
    supervisor: Supervisor
    _events: list[GroupStarting | GroupLost] = field(default_factory=list)
    """What one step brought beside the event that was waited for: where all die at once, the end and the next start come together."""

    def step_until(self, kind: type[GroupStarting] | type[GroupLost]) -> GroupStarting | GroupLost:
        """Step as the main loop does, until there is an event of that kind."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, kind):
                    return event
            select.select(self.supervisor.fds(), [], [], 0.05)
            self._events += self.supervisor.step(time.monotonic())
        raise AssertionError(f"no {kind.__name__} within {DEADLINE_S} s: {self.logs()}")

    def hellos(self) -> dict[int, RankHello]:
        """What the ranks say first, by rank, once all have said it."""
        heard: dict[int, RankHello] = {}
        deadline_s = time.monotonic() + DEADLINE_S
        while len(heard) < self.settings.world_size:
            assert time.monotonic() < deadline_s, self.logs()
            self.supervisor.step(time.monotonic())
            if self.socket.poll(50):
                message = codec.decode(self.socket.recv_multipart()[1:]).message
                if isinstance(message, RankHello):
                    heard[message.rank] = message
        self.supervisor.note_ready(time.monotonic())
        return heard

    def logs(self) -> str:
        """For a failure's message."""
        return "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-2000:]}" for path in self.settings.logs_dir.glob("*.log")
        )


Make = Callable[..., Stage]


@pytest.fixture
def make(state_dir: Path) -> Iterator[Make]:
    """Stages over this state directory."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stages: list[Stage] = []

    def build(
        rendezvous: Rendezvous | None = None, *, ranks: int = 2, budget: RestartBudget | None = None, **changes: object
    ) -> Stage:
        settings = GroupSettings(
            world_size=ranks, device="cpu", runtime_dir=state_dir, logs_dir=state_dir / "logs", rank_module="tutti.benchmarks.null_rank",
            rendezvous=rendezvous, environment=dict(os.environ),
        )  # fmt: skip
        listener = context.socket(zmq.ROUTER)
        listener.linger = 0
        listener.bind(settings.rank_endpoint)
        stages.append(Stage(settings, listener, Supervisor(replace(settings, **changes), budget)))  # type: ignore[arg-type]
        stages[-1].supervisor.start(time.monotonic())
        return stages[-1]

    yield build
    for stage in stages:
        stage.supervisor.stop()
        stage.socket.close()
    context.term()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_ranks_meet_through_a_file_and_say_hello_with_their_incarnations_token(make: Make) -> None:
    stage = make()
    started = stage.step_until(GroupStarting)
    assert isinstance(started, GroupStarting)
    hellos = stage.hellos()
    assert {(h.token, h.incarnation, h.group_id, h.world_size) for h in hellos.values()} == {
        (started.token, started.incarnation, 0, 2),
    }
    assert sorted(hellos) == [0, 1]
    assert len(our_children()) >= 3, "a launcher and two ranks: what is looked for below and at the end can be found"
    assert not any(started.token in " ".join(process.cmdline()) for process in our_children())


def test_ranks_of_several_launchers_could_meet_over_c10d(make: Make) -> None:
    """One host stands for several: the second implementation of the same protocol."""
    stage = make(C10dRendezvous(endpoint=f"127.0.0.1:{free_port()}", run_id="test", hosts=1))
    stage.step_until(GroupStarting)
    assert sorted(stage.hellos()) == [0, 1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_rank_that_died_first_is_named_and_the_group_starts_again(make: Make, number: signal.Signals) -> None:
    stage = make()
    first = stage.step_until(GroupStarting)
    hellos = stage.hellos()
    struck_s = time.monotonic()
    os.kill(hellos[1].pid, number)
    lost = stage.step_until(GroupLost)
    assert time.monotonic() - struck_s < 2.0
    assert isinstance(lost, GroupLost)
    assert (lost.cause, lost.failed) == (f"rank 1 was killed by signal {int(number)} ({number.name})", False)
    second = stage.step_until(GroupStarting)
    assert isinstance(first, GroupStarting)
    assert isinstance(second, GroupStarting)
    assert first.incarnation != second.incarnation
    assert first.token != second.token
    again = stage.hellos()
    assert not {hello.pid for hello in again.values()} & {hello.pid for hello in hellos.values()}
    assert not psutil.pid_exists(hellos[0].pid) or psutil.Process(hellos[0].pid).status() == psutil.STATUS_ZOMBIE


def test_a_launcher_that_is_killed_is_named_and_takes_its_ranks_along(make: Make) -> None:
    stage = make()
    stage.step_until(GroupStarting)
    pids = [hello.pid for hello in stage.hellos().values()]
    launcher = psutil.Process(pids[0]).parent()
    assert launcher is not None
    launcher.kill()
    lost = stage.step_until(GroupLost)
    assert isinstance(lost, GroupLost)
    assert lost.cause == "the launcher of the ranks was killed by signal 9 (SIGKILL)"
    stage.step_until(GroupStarting)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def test_a_group_that_never_came_up_is_not_started_again(make: Make) -> None:
    stage = make(rank_module="this")  # prints a poem and ends
    stage.step_until(GroupStarting)
    lost = stage.step_until(GroupLost)
    assert isinstance(lost, GroupLost)
    assert lost.failed
    assert lost.cause.startswith("rank ")
    assert lost.cause.endswith("ended with exit status 0")
    assert stage.supervisor.next_step_s() is not None, "it is still looking that the rest ends"


def test_a_group_that_dies_too_often_is_given_up(make: Make) -> None:
    stage = make(ranks=1, budget=RestartBudget(BudgetSettings(restarts=1)))
    for failed in (False, True):
        stage.step_until(GroupStarting)
        os.kill(stage.hellos()[0].pid, signal.SIGKILL)
        lost = stage.step_until(GroupLost)
        assert isinstance(lost, GroupLost)
        assert lost.failed is failed


def test_ranks_that_never_say_hello_are_a_dead_group(make: Make) -> None:
    stage = make(start_timeout_s=0.5)
    stage.step_until(GroupStarting)
    lost = stage.step_until(GroupLost)
    assert isinstance(lost, GroupLost)
    assert "not every rank was up" in lost.cause


def test_stopping_leaves_nothing(make: Make, state_dir: Path) -> None:
    stage = make()
    stage.step_until(GroupStarting)
    pids = {hello.pid for hello in stage.hellos().values()}
    stage.supervisor.stop()
    assert not our_children()
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)
    assert {path.name for path in state_dir.iterdir()} <= {"logs", "ranks"}


def test_a_restart_that_was_asked_for_gives_a_new_group(make: Make) -> None:
    stage = make(ranks=1)
    stage.step_until(GroupStarting)
    stage.hellos()
    (lost,) = stage.supervisor.restart("rank 0 talks nonsense", time.monotonic())
    assert isinstance(lost, GroupLost)
    assert (lost.cause, lost.failed) == ("rank 0 talks nonsense", False)
    stage.step_until(GroupStarting)
    assert stage.hellos()


def test_every_rank_has_its_log_and_the_last_starts_are_kept(make: Make) -> None:
    stage = make(ranks=1)
    for _ in range(2):
        stage.step_until(GroupStarting)
        os.kill(stage.hellos()[0].pid, signal.SIGKILL)
        stage.step_until(GroupLost)
    names = {path.name for path in stage.settings.logs_dir.iterdir()}
    assert {"launcher.log", "rank-0.log", "rank-0.out", "rank-0.log.1"} <= names


def test_the_two_ways_to_meet_have_the_same_face(tmp_path: Path) -> None:
    ways: list[Rendezvous] = [FileRendezvous(directory=tmp_path / "s"), C10dRendezvous(endpoint="h:1", run_id="r")]
    for way in ways:
        way.prepare()
        assert way.arguments()[0] == "--rendezvous"
        assert "://" in way.init_method
        way.clean_up()


def test_the_supervisor_never_imports_torch() -> None:
    script = "import sys, tutti.backend.supervisor.supervisor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
