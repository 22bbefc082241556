"""The launcher: ``python -m tutti.backend.supervisor.launch``. torchrun's agent without its command line, ports and restarts.

Its parent is the daemon, its children are the ranks. It is the one file of this package that imports torch, and only in its own
process. It reports who ended first, and how: when one rank dies the others follow within a fraction of a second, and torchrun's
own report cannot tell them apart.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .liveness import watch
from .logs import rotate
from .reports import REPORT_FD_VARIABLE, LauncherFailed, RankEnded, RanksStarted, first_cause, write_report

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.api import WorkerGroup, WorkerSpec
    from torch.distributed.elastic.multiprocessing import LogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.elastic.rendezvous import RendezvousHandler

MONITOR_S = 0.1
STOP_S = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one incarnation of the group to its end."""
    watch()
    options = _parse(arguments)
    report_fd = int(os.environ.pop(REPORT_FD_VARIABLE))
    os.set_inheritable(report_fd, False)
    _set_title()
    try:
        return _run(options, report_fd)
    except Exception as error:
        # Clients read the cause, and what an error says may name folders and hosts: its text goes into the log only.
        write_report(report_fd, LauncherFailed(error=type(error).__name__))
        raise


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tutti launcher")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--module", required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--rendezvous", choices=("file", "c10d"), required=True)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--endpoint")
    parser.add_argument("--run-id", default="tutti")
    parser.add_argument("--hosts", type=int, default=1)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, report_fd: int) -> int:
    from torch.distributed.elastic.agent.server.api import WorkerSpec

    spec = WorkerSpec(
        role="tutti",
        local_world_size=options.ranks,
        entrypoint=sys.executable,
        args=("-u", "-m", options.module),
        rdzv_handler=_rendezvous(options),
        max_restarts=0,  # restarts are the daemon's: its budget slides
        monitor_interval=MONITOR_S,
    )
    result = _agent(spec, _logs(options.logs), report_fd).run()
    # Only heard if the daemon has not been told already: the first report is the one that counts.
    report = first_cause([_as_report(rank, failure) for rank, failure in result.failures.items()])
    if report:
        write_report(report_fd, report)
    return 1


def _as_report(rank: int, failure: ProcessFailure) -> RankEnded:
    killed_by = -failure.exitcode if failure.exitcode < 0 else None
    status = None if killed_by else failure.exitcode
    return RankEnded(rank=rank, pid=failure.pid, signal=killed_by, status=status)


def _agent(spec: WorkerSpec, logs: LogsSpecs, report_fd: int) -> Any:
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    class ReportingAgent(LocalElasticAgent):
        """torchrun's agent, with a look at which rank ends first."""

        def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
            started: dict[int, Any] = super()._start_workers(worker_group)
            pids = {worker.global_rank: int(started[worker.local_rank]) for worker in worker_group.workers}
            write_report(report_fd, RanksStarted(pids=tuple(pids[rank] for rank in sorted(pids))))
            threading.Thread(target=_report_first_end, args=(pids, report_fd), name="tutti-ends", daemon=True).start()
            return started

    return ReportingAgent(spec, logs, exit_barrier_timeout=0, shutdown_timeout=STOP_S)


def _report_first_end(pids: dict[int, int], report_fd: int) -> None:
    """Wait until a rank ends, and tell how, without taking its exit status away from the agent.

    Where the agent was quicker nothing is said: its result names that rank, and what else is seen here may follow from it.
    """
    with contextlib.ExitStack() as held:
        try:
            ranks = {_process_fd(pid, held): (rank, pid) for rank, pid in pids.items()}
        except ProcessLookupError:
            return
        poller = select.poll()
        for fd in ranks:
            poller.register(fd, select.POLLIN)
        ends = [_end_of(*ranks[fd]) for fd, _ in poller.poll()]
    report = first_cause([end for end in ends if end is not None])
    if report and None not in ends:
        write_report(report_fd, report)


def _process_fd(pid: int, held: contextlib.ExitStack) -> int:
    fd = os.pidfd_open(pid)
    held.callback(os.close, fd)
    return fd


def _end_of(rank: int, pid: int) -> RankEnded | None:
    try:
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None  # the agent has taken it
    if end is None:
        return None
    by_signal = end.si_code != os.CLD_EXITED
    killed_by, status = (end.si_status, None) if by_signal else (None, end.si_status)
    return RankEnded(rank=rank, pid=pid, signal=killed_by, status=status)


def _rendezvous(options: argparse.Namespace) -> RendezvousHandler:
    if options.rendezvous == "file":
        return _file_rendezvous(options.directory, options.run_id)
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    return get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint=options.endpoint,
            run_id=options.run_id,
            min_nodes=options.hosts,
            max_nodes=options.hosts,
        )
    )


def _file_rendezvous(directory: Path, run_id: str) -> RendezvousHandler:
    """One launcher on one host needs nobody: a store in a file, and no port."""
    from torch.distributed import FileStore  # type: ignore[attr-defined]  # torch re-exports it without saying so
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
    from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

    class PortFree(RendezvousHandler):
        """A rendezvous of one."""

        def get_backend(self) -> str:
            return "file"

        @property
        def use_agent_store(self) -> bool:
            return False

        def next_rendezvous(self) -> RendezvousInfo:
            # The ranks meet by TUTTI_INIT_METHOD; nobody listens at the address that torchrun's variables name.
            store = FileStore(str(directory / "launcher"), 1)
            return RendezvousInfo(store, 0, 1, RendezvousStoreInfo("127.0.0.1", 1))

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            return None

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return run_id

        def shutdown(self) -> bool:
            return True

    return PortFree()


def _logs(folder: Path) -> LogsSpecs:
    """``rank-N.log`` (errors and logging) and ``rank-N.out``, rotated at every start."""
    from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

    class RankLogs(LogsSpecs):
        """Where the ranks' output goes."""

        @property
        def root_log_dir(self) -> str:
            return str(folder)

        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            places: dict[str, dict[int, str]] = {"log": {}, "out": {}, "error": {}}
            for local_rank, environment in envs.items():
                for kind, paths in places.items():
                    path = folder / f"rank-{environment['RANK']}.{kind}"
                    rotate(path)
                    paths[local_rank] = str(path)
                environment["TORCHELASTIC_ERROR_FILE"] = places["error"][local_rank]
            return LogsDest(stdouts=places["out"], stderrs=places["log"], error_files=places["error"])

    return RankLogs()


def _set_title() -> None:
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle("tutti: launcher")


if __name__ == "__main__":
    sys.exit(main())
