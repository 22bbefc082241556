"""``install.py dev`` and ``test``: the repository's own environment ``.venv``, and Chromium for the browser tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .backend_env import OLDEST_PYTHON
from .environment import Environment, fingerprint, suitable_python
from .runner import Runner, SetupError
from .torch_source import detect_driver

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_COMMAND = "apt-get update && apt-get install -y --no-install-recommends chromium fonts-noto-cjk"


def install_dev(pack: Path, runner: Runner) -> Environment:
    """Make (or find) ``.venv``: the pack editable, the back end's lock, the development tools."""
    environment = Environment(pack / ".venv", runner, suitable_python(OLDEST_PYTHON))
    environment.create()
    locks = pack / "locks"
    for name in ("backend-cpu.txt", "dev.txt"):
        environment.install_lock(locks / name)
    if detect_driver().cuda:
        try:
            environment.install_lock(locks / "backend-cuda.txt")
        except SetupError as problem:
            runner.say(f"WARNING: xfuser is not installed; the tests that need it will skip. {problem}")
    mark = fingerprint((pack / "pyproject.toml").read_bytes())
    if not environment.satisfies("editable", mark):
        environment.pip("--no-deps", "--no-build-isolation", "-e", pack, title="Installing the pack, editable")
        environment.record("editable", mark)
    # mypy does not see a package whose root is the repository's root through an editable install.
    link = pack / ".typing" / "tutti"
    if not link.exists():
        runner.change(f"link {link} to the repository", lambda: _link_for_mypy(link))
    runner.say(f"development environment: {environment.command('tutti')}")
    return environment


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome."""
    return next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)


def install_chromium(runner: Runner) -> None:
    """From apt where that is allowed, else say the command; without it the browser tests skip and name it."""
    if find_chromium():
        return
    if os.name == "nt" or os.geteuid() != 0 or not shutil.which("apt-get"):
        runner.say(f"No Chromium: the browser tests will skip. To have them, run as root: {CHROMIUM_COMMAND}")
        return
    try:
        runner.run(
            ["sh", "-c", f"export DEBIAN_FRONTEND=noninteractive; {CHROMIUM_COMMAND}"],
            title="Installing Chromium from apt",
            remedy=f"run it by hand: {CHROMIUM_COMMAND}",
            timeout_s=1800,
        )
    except SetupError as problem:
        runner.say(f"WARNING: no Chromium, so the browser tests will skip. {problem}")


def _link_for_mypy(link: Path) -> None:
    link.parent.mkdir(exist_ok=True)
    link.symlink_to("..", target_is_directory=True)
