"""One start of the worker group: the launcher, its report pipe, the ranks, the lifeline and the stores they met in."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .environment import RankEnvironment
from .liveness import Lifeline
from .processes import HeldProcess
from .rendezvous import FileRendezvous, Rendezvous
from .reports import REPORT_FD_VARIABLE, LauncherFailed, RankEnded, RanksStarted, how_it_ended, read_report

LAUNCHER_MODULE = f"{__package__}.launch"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """What every incarnation has in common."""

    world_size: int
    device: str
    """``cpu`` or ``cuda``"""
    transport: str = ""
    """``nccl``, ``gloo``, ``gloo-host-staged``, or empty: the ranks choose."""
    runtime_dir: Path
    logs_dir: Path
    rank_module: str
    """What a rank runs: ``python -m``."""
    compile: str = "auto"
    """How networks are compiled: one of ``COMPILE_MODES``."""
    compiled_dir: Path | None = None
    """Where compiled code is kept from one start to the next."""
    rendezvous: Rendezvous | None = None
    """None: files, for one host."""
    group_id: int = 0
    start_timeout_s: float = 300.0
    """How long the ranks may take to say hello."""
    environment: dict[str, str] = field(default_factory=dict)
    """The daemon's own, from which the ranks inherit."""

    @property
    def rank_endpoint(self) -> str:
        """Where the ranks find the broker."""
        return f"ipc://{self.runtime_dir / 'ranks'}"


class Incarnation:
    """A group that is starting or up."""

    def __init__(self, settings: GroupSettings) -> None:
        self.name = secrets.token_hex(16)
        self.token = secrets.token_hex(32)
        self._settings = settings
        self._rendezvous = settings.rendezvous or FileRendezvous(
            directory=settings.runtime_dir / f"stores-{self.name[:8]}"
        )
        self._lifeline = Lifeline(settings.runtime_dir / f"alive-{self.name[:8]}")
        self._shared_folder = settings.runtime_dir / f"shared-{self.name[:8]}"
        """Where the ranks keep what they share: made by the first that needs it."""
        self._unread = b""
        self._ranks: list[HeldProcess] = []
        self._rendezvous.prepare()
        self._report_fd, write_fd = os.pipe()
        os.set_blocking(self._report_fd, False)
        try:
            self._launcher = self._spawn(write_fd)
        finally:
            os.close(write_fd)

    def _spawn(self, report_fd: int) -> subprocess.Popen[bytes]:
        """Call it from the main thread: the kernel binds the launcher's life to the thread that starts it."""
        settings = self._settings
        environment = RankEnvironment(
            token=self.token,
            incarnation=self.name,
            group_id=settings.group_id,
            rank_endpoint=settings.rank_endpoint,
            shared_folder=str(self._shared_folder),
            liveness=str(self._lifeline.path),
            init_method=self._rendezvous.init_method,
            device=settings.device,
            transport=settings.transport,
            world_size=settings.world_size,
            compile=settings.compile,
            compiled_folder="" if settings.compiled_dir is None else str(settings.compiled_dir),
            one_host=settings.rendezvous is None,
        ).variables(settings.environment)
        command = [
            sys.executable, "-u", "-m", LAUNCHER_MODULE, "--ranks", str(settings.world_size), "--module", settings.rank_module,
            "--logs", str(settings.logs_dir), *self._rendezvous.arguments(),
        ]  # fmt: skip
        with (settings.logs_dir / "launcher.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=settings.runtime_dir,  # `-m` puts the working directory on the path: it must be one that nobody else writes to
                env=environment | {REPORT_FD_VARIABLE: str(report_fd)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[report_fd],
                start_new_session=True,  # Ctrl-C in the daemon's terminal is the daemon's business
            )

    @property
    def fd(self) -> int:
        """Readable when :meth:`look` has news."""
        return self._report_fd

    def look(self) -> str | None:
        """What ended the group, if something has."""
        lines, over = self._read_lines()
        for line in lines:
            report = read_report(line)
            if isinstance(report, RanksStarted):
                self._hold(report.pids)
            elif isinstance(report, RankEnded | LauncherFailed):
                return report.cause()
        if over or self._launcher.poll() is not None:
            return self._launcher_cause()
        return None

    def kill(self) -> None:
        """End every process, at once. They are gone when :meth:`is_gone` says so."""
        self._lifeline.cut()
        for rank in self._ranks:
            rank.kill()
        if self._launcher.poll() is None:
            self._launcher.kill()

    def is_gone(self) -> bool:
        """Whether no process is left."""
        return self._launcher.poll() is not None and all(rank.has_ended() for rank in self._ranks)

    def clean_up(self) -> None:
        """Remove what it left, once it is gone."""
        for rank in self._ranks:
            rank.release()
        self._ranks.clear()
        os.close(self._report_fd)
        self._rendezvous.clean_up()
        shutil.rmtree(self._shared_folder, ignore_errors=True)

    @property
    def pids(self) -> list[int]:
        """The launcher and the ranks."""
        return [self._launcher.pid, *(rank.pid for rank in self._ranks)]

    def _hold(self, pids: Sequence[int]) -> None:
        held = (HeldProcess.hold(pid) for pid in pids)
        self._ranks = [rank for rank in held if rank is not None]

    def _read_lines(self) -> tuple[list[bytes], bool]:
        try:
            data = os.read(self._report_fd, 65536)
        except BlockingIOError:
            return [], False
        *lines, self._unread = (self._unread + data).split(b"\n")
        return lines, data == b""

    def _launcher_cause(self) -> str:
        status = self._launcher.wait(timeout=5.0)
        return f"the launcher of the ranks {how_it_ended(-status if status < 0 else None, status)}"
