"""``tutti`` as a word of the shell: a link in the user's folder of commands to the environment in use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .runner import Runner

NAME = "tutti"


def commands_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_BIN_HOME`` where it is set, else ``~/.local/bin``: on the PATH of most distributions, and pip's own place for commands."""
    stated = environ.get("XDG_BIN_HOME", "")
    return Path(stated) if os.path.isabs(stated) else Path.home() / ".local" / "bin"


def offer_command(executable: str, environments: Path, runner: Runner) -> None:
    """Link the command ``tutti`` to ``executable``, unless something that is not ours is there; say how to call it.

    ``environments`` is the folder of the installed back ends: a link into it is ours. Windows has no links for everybody: the path is said.
    """
    if os.name != "posix":
        runner.say(f'where these instructions say `tutti`, run: "{executable}"')
        return
    link = commands_folder() / NAME
    if not may_be_replaced(link, environments):
        runner.say(f'left {link} alone: it is not ours. Where these instructions say `tutti`, run: "{executable}"')
        return
    if not (link.is_symlink() and os.readlink(link) == executable):
        try:
            runner.change(f"link {link} to {executable}", lambda: _link(link, executable))
        except OSError as problem:  # the back end is installed all the same
            runner.say(
                f'{link} cannot be made ({problem.strerror}). Where these instructions say `tutti`, run: "{executable}"'
            )
            return
    if runner.dry_run:
        return
    if _is_on_path(link.parent):
        runner.say(f"`tutti` is a command now: {link}")
    else:
        runner.say(f'{link.parent} is not on your PATH. Where these instructions say `tutti`, run: "{link}"')


def may_be_replaced(link: Path, environments: Path) -> bool:
    """Nothing is there, or our own link, wherever it leads by now."""
    if link.is_symlink():
        return environments in Path(os.readlink(link)).parents
    return not link.exists()


def _link(link: Path, executable: str) -> None:
    """At once: there is always an old link or a new one."""
    link.parent.mkdir(parents=True, exist_ok=True)
    draft = link.with_name(f".{NAME}.{os.getpid()}")
    draft.symlink_to(executable)
    os.replace(draft, link)


def _is_on_path(folder: Path) -> bool:
    return any(Path(entry) == folder for entry in os.environ.get("PATH", "").split(os.pathsep) if entry)
