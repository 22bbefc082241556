"""``install.py connect FILE``: let this machine's ComfyUI use a daemon on another one, where no back end and so no ``tutti`` is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from .runner import Runner, SetupError

PACKAGE = "tutti_backend"


def connect(pack: Path, runner: Runner, file: Path | None, *, forget: bool = False) -> None:
    """Check ``file`` and copy it into the state directory as ``remote.json``, or remove that one.

    :class:`SetupError` when the file is no connection file, or may be read by others, or the state directory may.
    """
    connection = load_connection(pack)
    remote = connection.state_dir() / connection.REMOTE_FILE
    if forget:
        runner.change(f"remove {remote}", lambda: remote.unlink(missing_ok=True))
        runner.say("ComfyUI on this machine uses this machine's own daemon.")
        return
    if file is None:
        raise SetupError(
            "No connection file is named.", "give the one that `tutti keys add` wrote: install.py connect FILE."
        )

    def write() -> None:
        connection.ensure_private_dir(remote.parent)
        connection.write_connection(remote, imported)

    try:
        imported = connection.read_connection(file).imported()
        runner.change(f"write {remote}", write)
    except FileNotFoundError:
        raise SetupError(f"{file} does not exist.", "name the file that `tutti keys add` wrote.") from None
    except connection.ConnectionFileProblem as problem:
        raise SetupError(f"{file} cannot be imported into {remote.parent}.", str(problem)) from problem
    if not runner.dry_run:
        runner.say(f"ComfyUI on this machine now uses the daemon at {imported.endpoint} ({remote}).")


def load_connection(pack: Path) -> ModuleType:
    """``backend/wire/connection.py``, which has the rules and needs the standard library only; by its path, as install.py loads us."""
    folder = pack / "backend"
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[os.fspath(folder)]
    )
    if spec is None or spec.loader is None:
        raise SetupError(f"{folder} is missing.", "get a fresh copy of the pack.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)
    return importlib.import_module(f"{PACKAGE}.wire.connection")
