"""What a test may leave behind: nothing. Processes, threads, descriptors, temporary files and shared memory are compared before and after.

A process is ours when it descends from this one or carries this session's mark in its environment: that finds orphans too.
"""

from __future__ import annotations

import gc
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "TUTTI_TEST_SESSION"
"""Environment variable that every process started by this session inherits."""

GRACE_S = 3.0
"""How long things may take to vanish after a test: a killed process to be reaped, a closed socket to leave the table."""

SHARED_MEMORY = Path("/dev/shm")

# Kept on purpose by their libraries for the life of the process.
_LASTING_THREADS = re.compile(
    r"^(MainThread|pytest_timeout .*|pytest_timeout.*|tqdm_monitor.*|TMonitor.*|asyncio-waitpid-.*)$"
)
_LASTING_PROCESSES = re.compile(r"multiprocessing[./](resource_tracker|forkserver)|torch/_inductor/compile_worker")
_LASTING_TARGETS = re.compile(r"^(/dev/(null|urandom|random|tty.*|pts/.*)|/proc/|/sys/|.*\.(so|py|pyc|dat)$|/memfd:)")
_LASTING_FILES = re.compile(r"^(torchinductor_.*|\.?triton.*)$")
_FOREIGN_SHARED_MEMORY = re.compile(r"^(?!(tutti|torch_|psm_|nccl|mp-|sem\.))")


@dataclass(frozen=True)
class Snapshot:
    """What this session holds at one moment. Every entry maps an identity to a line for people."""

    processes: dict[object, str] = field(default_factory=dict)
    threads: dict[object, str] = field(default_factory=dict)
    descriptors: dict[object, str] = field(default_factory=dict)
    files: dict[object, str] = field(default_factory=dict)

    def beyond(self, earlier: Snapshot) -> list[str]:
        """One line for each thing that is here and was not there before."""
        lines = []
        for kind in ("processes", "threads", "descriptors", "files"):
            before: dict[object, str] = getattr(earlier, kind)
            lines += [text for identity, text in getattr(self, kind).items() if identity not in before]
        return lines


class LeakWatch:
    """Takes snapshots of this process, its descendants, and one temporary folder."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self.mark = uuid.uuid4().hex
        os.environ[MARK] = self.mark

    def snapshot(self) -> Snapshot:
        """The present state."""
        return Snapshot(
            processes={process.pid: text for process, text in self._processes()},
            threads={thread.ident: f"thread {thread.name!r}" for thread in threading.enumerate() if _counts(thread)},
            descriptors=dict(_descriptors()),
            files=dict(self._files()),
        )

    def leaked_since(self, earlier: Snapshot, grace_s: float = GRACE_S) -> list[str]:
        """What is new since ``earlier`` and does not vanish within ``grace_s``; leaked processes are killed."""
        deadline_s = time.monotonic() + grace_s
        collected = False
        while leaks := self.snapshot().beyond(earlier):
            if not collected:
                gc.collect()
                collected = True
            elif time.monotonic() > deadline_s:
                self._kill_beyond(earlier)
                return leaks
            else:
                time.sleep(0.05)
        return []

    def _processes(self) -> Iterable[tuple[psutil.Process, str]]:
        me = os.getpid()
        mine = {child.pid for child in psutil.Process().children(recursive=True)}
        for process in psutil.process_iter():
            if process.pid == me:
                continue
            try:
                if process.pid not in mine and process.environ().get(MARK) != self.mark:
                    continue
                if process.status() == psutil.STATUS_ZOMBIE and process.ppid() != me:
                    continue
                words = " ".join(process.cmdline()) or process.name()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if not _LASTING_PROCESSES.search(words):
                yield process, f"process {process.pid}: {words[:200]}"

    def _kill_beyond(self, earlier: Snapshot) -> None:
        for process, _ in self._processes():
            if process.pid not in earlier.processes:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue

    def _files(self) -> Iterable[tuple[object, str]]:
        for entry in _listed(self.temporary):
            if not _LASTING_FILES.match(entry):
                yield entry, f"temporary file {self.temporary / entry}"
        for entry in _listed(SHARED_MEMORY):
            path = SHARED_MEMORY / entry
            if not _FOREIGN_SHARED_MEMORY.match(entry) and self._is_ours(path):
                yield path, f"shared memory {path}"

    def _is_ours(self, path: Path) -> bool:
        """Whether a shared-memory file is not held by a process of another session of the same user."""
        try:
            if path.stat().st_uid != os.geteuid():
                return False
        except FileNotFoundError:
            return False
        for process in psutil.process_iter():
            try:
                if _maps(process.pid, path) and process.environ().get(MARK) != self.mark and process.pid != os.getpid():
                    return False
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return True


def _counts(thread: threading.Thread) -> bool:
    return not _LASTING_THREADS.match(thread.name) and not isinstance(thread, threading._DummyThread)


def _descriptors() -> Iterable[tuple[object, str]]:
    for name in _listed(Path("/proc/self/fd")):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
        if not _LASTING_TARGETS.match(target):
            yield (name, target), f"descriptor {name}: {target}"


def _maps(pid: int, path: Path) -> bool:
    try:
        return str(path) in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
