"""The frame around every test: nothing is left behind, nothing of the user is touched, and no skip goes unnoticed.

With ``TUTTI_CI=1`` (set by ``.ci/run``, which installs everything that can be installed) a skipped test fails, unless this machine lacks
something that no installation brings.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.leaks import LeakWatch

REPOSITORY = Path(__file__).resolve().parents[1]
CI = os.environ.get("TUTTI_CI") == "1"

UNAVOIDABLE_SKIPS = re.compile(
    r"NVIDIA GPU|\bGPUs?\b|CUDA device|no IPv6 loopback|no network namespaces|not (Linux|Windows|macOS)|only on (Linux|Windows|macOS)",
    re.IGNORECASE,
)
"""Reasons that hold in CI too: what `.ci/run` cannot install."""

SHORT_PATH_BYTES = 60
"""A Unix socket's path may have about 100 bytes; what a state directory adds to its own path fits into the rest."""

_watch: LeakWatch


def pytest_addoption(parser: pytest.Parser) -> None:
    """Compilation takes a minute a test."""
    parser.addoption("--compile", action="store_true", help="also run every family compiled under every plan (long)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that are marked ``compile`` run when asked for."""
    if config.getoption("--compile"):
        return
    left_out = [item for item in items if item.get_closest_marker("compile")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("compile")]


def pytest_configure(config: pytest.Config) -> None:
    """A private temporary folder for this session and all its processes; pytest's own folders stay where they are."""
    # `python -m pytest` puts the repository's root on the path; `backend` and `kernels` must not become top-level modules.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != REPOSITORY]
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    private = Path(tempfile.mkdtemp(prefix="tutti-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(private, ignore_errors=True))
    os.environ["TMPDIR"] = tempfile.tempdir = str(private)
    # A test that forgets its own state directory must not meet the user's daemon.
    os.environ["TUTTI_STATE_DIR"] = str(private / "no-state-dir-was-given")
    global _watch
    _watch = LeakWatch(private)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Fails the test that leaks a process, thread, descriptor, temporary file or shared memory. Set up first, torn down last."""
    before = _watch.snapshot()
    yield
    leaks = _watch.leaked_since(before)
    if leaks:
        pytest.fail("the test left behind:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _session_leaves_nothing_behind() -> Iterator[None]:
    """The same for what lives longer than one test: module and session fixtures."""
    before = _watch.snapshot()
    yield
    leaks = _watch.leaked_since(before)
    if leaks:
        pytest.fail("the session left behind:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture
def state_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty 0700 state directory with a path short enough for Unix sockets, set as ``TUTTI_STATE_DIR``."""
    parent = tempfile.gettempdir()
    path = Path(tempfile.mkdtemp(prefix="s", dir=parent if len(os.fsencode(parent)) < SHORT_PATH_BYTES else "/tmp"))
    monkeypatch.setenv("TUTTI_STATE_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI, turn a skip that could have been avoided into a failure."""
    if not (CI and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not UNAVOIDABLE_SKIPS.search(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which could have run it. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    _refuse_skip(report)
    return report
