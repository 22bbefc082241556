"""``install.py backend``: a versioned environment in the user's data folder, switched to only after it has passed ``tutti doctor``."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .command_link import offer_command
from .environment import PIP_ARGUMENTS, Environment, fingerprint, suitable_python
from .folders import Current, data_folder, read_current, write_current
from .runner import Runner, SetupError
from .torch_source import (
    OWN_CUDA,
    OWN_TORCH,
    Driver,
    Found,
    check_own,
    detect_driver,
    dotted,
    link_torch,
    look_into,
    why_not_reuse,
)

OLDEST_PYTHON = (3, 11)
COMPLETE = "complete"

_NOT_PACKAGED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "docs", "locks", "tests", "workflows"
)


@dataclass(frozen=True, kw_only=True)
class TorchChoice:
    """Where the environment's torch comes from."""

    reused: Found | None
    """The torch to link, or None: its own."""
    label: str
    """For the environment's name: ``cpu``, ``cu130``."""
    identity: str
    """Changes when another torch is to be used."""
    reason: str
    """One line for the user."""


def install_backend(pack: Path, runner: Runner, *, torch: str, comfy_python: str) -> Current:
    """Make (or find) the environment for this pack and this machine, and point ``current.json`` at it.

    ``torch`` is ``auto``, ``reuse`` or ``own``; ``comfy_python`` is the Python whose torch may be reused.
    """
    python = suitable_python(OLDEST_PYTHON)
    driver = detect_driver()
    runner.say(driver.note)
    choice = choose_torch(torch, comfy_python, driver, python.version)
    runner.say(choice.reason)

    version = pack_version(pack)
    locks = [pack / "locks" / "backend-cpu.txt"] + ([pack / "locks" / "backend-cuda.txt"] if driver.cuda else [])
    mark = fingerprint(*(lock.read_bytes() for lock in locks), choice.identity, *_source_parts(pack))
    root = data_folder()
    environment = Environment(root / "envs" / f"{version}-{choice.label}-{mark[:8]}", runner, python)
    current = Current(executable=str(environment.command("tutti")), version=version)
    if read_current(root) == current and environment.satisfies(COMPLETE, mark) and _torch_is_there(environment):
        runner.say(f"the back end {version} is installed already: {current.executable}")
        offer_command(current.executable, environment.folder.parent, runner)
        return current

    _remove_others(environment, unfinished_only=True)
    _fill(environment, pack, locks, choice, driver)
    runner.run(
        [current.executable, "doctor", "--installation"],
        title="Checking the new environment (tutti doctor --installation)",
        remedy="mend what it names, then run the same command again. The environment used so far stays in use.",
        timeout_s=300,
    )
    environment.record(COMPLETE, mark)
    runner.change(f"point {root / 'current.json'} at {current.executable}", lambda: write_current(root, current))
    offer_command(current.executable, environment.folder.parent, runner)
    _remove_others(environment)
    if not runner.dry_run:
        runner.say(f"the back end {version} is ready: {current.executable}")
    return current


def choose_torch(torch: str, comfy_python: str, driver: Driver, python_version: tuple[int, int]) -> TorchChoice:
    """Decide as asked; ``auto`` reuses if it fits. :class:`SetupError` when what was asked for cannot be had."""
    refusal: str | None = "not asked for"
    if torch != "own":
        found = look_into(comfy_python)
        refusal = why_not_reuse(found, driver, python_version)
        if refusal is None:
            build = f"cu{found.cuda[0]}{found.cuda[1]}" if found.cuda and driver.cuda else "cpu"
            reason = f"torch: reusing {found.torch} of {comfy_python} (linked, not copied; nothing is written there)"
            identity = f"reuse {comfy_python} {found.torch}"
            return TorchChoice(reused=found, label=build, identity=identity, reason=reason)
        if torch == "reuse":
            raise SetupError(
                f"The torch of {comfy_python} cannot be reused: {refusal}.",
                "use --torch own (a separate download), or give --python the Python that runs ComfyUI.",
            )
    extra = os.environ.get(PIP_ARGUMENTS, "")
    check_own(driver, extra)
    label = "cu" + dotted(OWN_CUDA).replace(".", "") if driver.cuda else "cpu"
    reason = f"torch: an own copy, torch=={OWN_TORCH} as pip finds it (reuse: {refusal})"
    return TorchChoice(reused=None, label=label, identity=f"own {extra}", reason=reason)


def pack_version(pack: Path) -> str:
    """The version stated in the pack's pyproject.toml (read without a TOML parser, which Python 3.10 lacks)."""
    match = re.search(r'^version = "([^"]+)"$', (pack / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise SetupError(f"{pack / 'pyproject.toml'} states no version.", "get a fresh copy of the pack.")
    return match[1]


def install_pack(environment: Environment, pack: Path) -> None:
    """Build and install the pack, not editable, from a copy (a build leaves files beside its sources)."""
    if environment.runner.dry_run:
        environment.runner.say(f"would install the pack from {pack} (not editable)")
        return
    with tempfile.TemporaryDirectory(prefix="tutti-build-") as scratch:
        copy = Path(scratch) / "tutti"
        shutil.copytree(pack, copy, ignore=_NOT_PACKAGED)
        environment.pip(
            "--no-deps", "--no-build-isolation", "--force-reinstall", copy, title="Installing the pack into it"
        )


def _fill(environment: Environment, pack: Path, locks: list[Path], choice: TorchChoice, driver: Driver) -> None:
    runner = environment.runner
    environment.create()
    reused = choice.reused
    if reused is not None:
        site = _site_folder(environment, reused.python_version)
        runner.change(f"link torch {reused.torch} from {reused.python}", lambda: link_torch(reused, site, runner))
    environment.install_lock(locks[0], leave_out={"torch"} if reused else ())
    install_pack(environment, pack)
    if driver.cuda:
        if not runner.dry_run and look_into(str(environment.python)).cuda is None:
            runner.say(
                f"WARNING: pip found a CPU build of torch: the GPU will not be used. Name an index with CUDA builds in {PIP_ARGUMENTS}."
            )
        _install_accelerators(environment, locks[1])


def _install_accelerators(environment: Environment, lock: Path) -> None:
    """xfuser (with its attention kernels' wrappers) and triton. The back end works without: a failure is named and does not abort."""
    runner = environment.runner
    try:
        environment.install_lock(lock)
        for name in ("xfuser", "triton"):
            probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{name}') is None)"
            runner.run([environment.python, "-c", probe], title=f"Looking for {name}", remedy="see above")
    except SetupError as problem:
        runner.say(f"WARNING: xfuser and triton are not complete, so fewer attention kernels are offered. {problem}")


def _site_folder(environment: Environment, python_version: tuple[int, int]) -> Path:
    if os.name == "nt":
        return environment.folder / "Lib" / "site-packages"
    return environment.folder / "lib" / f"python{dotted(python_version)}" / "site-packages"


def _torch_is_there(environment: Environment) -> bool:
    """Whether torch's files are still behind their links (ComfyUI's torch may have been replaced)."""
    pattern = "Lib/site-packages/torch/version.py" if os.name == "nt" else "lib/python3*/site-packages/torch/version.py"
    return any(path.is_file() for path in environment.folder.glob(pattern))


def _source_parts(pack: Path) -> Iterator[bytes]:
    """Name and contents of every packaged file, in a fixed order: other code gets another environment."""
    for folder, names, files in os.walk(pack):
        here = Path(folder)
        skipped = _NOT_PACKAGED(folder, [*names, *files])
        names[:] = sorted(set(names) - skipped)
        for file in sorted(set(files) - skipped):
            if file.endswith((".py", ".toml")):
                yield (here / file).relative_to(pack).as_posix().encode()
                yield (here / file).read_bytes()


def _remove_others(keep: Environment, *, unfinished_only: bool = False) -> None:
    """Remove the other environments, except those that a running process uses."""
    runner = keep.runner
    for folder in sorted(keep.folder.parent.glob("*-*-*")):
        if folder == keep.folder or (unfinished_only and Environment(folder, runner, keep.maker).has_done(COMPLETE)):
            continue
        if is_in_use(folder):
            runner.say(f"kept {folder}: a daemon runs from it; the next installation removes it")
        else:
            remove = partial(shutil.rmtree, folder, ignore_errors=True)
            runner.change(f"remove the older environment {folder}", remove)


def is_in_use(folder: Path) -> bool:
    """Whether a process runs from this environment. Without /proc there is no cheap way to know: then no.

    The command line alone does not tell: daemon, launcher and ranks give themselves a title, which overwrites it. The compiled modules
    that a process has loaded (pyzmq, msgpack, torch, ...) stay mapped.
    """
    started = os.fsencode(folder) + b"/"
    mapped = b" " + os.fsencode(folder.resolve()) + b"/"
    return any(
        _contents(process / "cmdline").startswith(started) or mapped in _contents(process / "maps")
        for process in Path("/proc").glob("[0-9]*")
    )


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process ended meanwhile, or belongs to another user
        return b""
