"""The house stands as drawn: file rules, the package map, the import contracts, the lock files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path, PurePosixPath

import pytest
import tutti

from tests.support.house_rules import RULES, Rule

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".json", ".sh", ".js", ".txt", ".cfg", ".yml", ".yaml", ""}
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
LOCKS = sorted((REPOSITORY / "locks").glob("*.txt"))


@cache
def repository_files() -> list[PurePosixPath]:
    """Every file of the repository that is not ignored, tracked or new."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout.decode().split("\0")
    paths = [PurePosixPath(name) for name in sorted(listed) if name]
    return [path for path in paths if path.suffix in TEXT_SUFFIXES and (REPOSITORY / path).is_file()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    findings = [
        f"{path}:{line}: {what}"
        for path in repository_files()
        for line, what in rule(path, (REPOSITORY / path).read_text(encoding="utf-8"))
    ]
    assert not findings, "\n".join(findings)


BAD = {
    "no_code_from_data": ["import pick" + "le\n", "x = torch.lo" + "ad('f')\n", "socket.send_py" + "obj(1)\n", "x = ev" + "al('1')\n"],
    "no_machine_words": ["path = '/" + "work/main'\n", "path = '/" + "root/.cache'\n"],
    "no_left_over_markers": ["x = 1  # TO" + "DO later\n"],
    "small_files_and_functions": ["x = 1\n" * 501, "def f():\n" + "    x = 1\n" * 71],
    "says_what_it_is_for": ["x = 1\n"],
    "no_swallowed_exceptions": ["try:\n    f()\nexcept Exception:\n    pass\n", "try:\n    f()\nexcept:\n    pass\n"],
}  # fmt: skip


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule in RULES for text in BAD[rule.__name__]])
def test_each_rule_finds_what_it_forbids(rule: Rule, text: str) -> None:
    """Negative control."""
    assert list(rule(PurePosixPath("backend/bad.py"), text))


def test_the_package_map_lists_every_package() -> None:
    on_disk = {
        ".".join(("tutti", *path.parent.parts))
        for path in repository_files()
        if path.name == "__init__.py" and path.parts[0] != "tests"
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == on_disk


def test_the_version_is_stated_once_and_repeated_faithfully() -> None:
    assert tutti.__version__ == PYPROJECT["project"]["version"]


def test_the_manager_installs_what_the_package_depends_on() -> None:
    assert (REPOSITORY / "requirements.txt").read_text().split("\n")[:-1] == PYPROJECT["project"]["dependencies"]


def test_the_gates_and_the_installer_are_executable() -> None:
    for name in (".ci/run", "install.py"):
        assert (REPOSITORY / name).stat().st_mode & 0o111, name


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_pins_every_package_and_hashes_all_but_torch(lock: Path) -> None:
    without_hash = []
    for block in re.split(r"\n(?=[^\s#])", re.sub(r"^#.*\n", "", lock.read_text(), flags=re.MULTILINE)):
        assert re.match(r"[a-z0-9._-]+==\S+", block), block
        if "--hash=sha256:" not in block:
            without_hash.append(block.split("==")[0].strip())
    assert set(without_hash) <= {"torch", "torchvision", "torchaudio"}


def test_the_back_ends_lock_holds_everything_that_the_back_end_asks_for() -> None:
    wanted = PYPROJECT["project"]["optional-dependencies"]["backend"] + PYPROJECT["project"]["dependencies"]
    names = {re.split(r"[<>=]", requirement)[0].lower() for requirement in wanted}
    pinned = set(re.findall(r"(?m)^([a-z0-9._-]+)==", (REPOSITORY / "locks" / "backend-cpu.txt").read_text()))
    assert names <= pinned


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the package ``tutti`` in ``folder``, whatever is installed."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from importlinter.cli import lint_imports\n"
        "sys.exit(lint_imports(config_filename=sys.argv[2], no_cache=True))"
    )
    command = [sys.executable, "-c", script, str(folder), str(folder / "tutti" / "pyproject.toml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=folder)


@pytest.fixture
def house_copy(tmp_path: Path) -> Path:
    """A copy of the package, as ``tutti`` in a folder of its own."""
    for path in repository_files():
        if path.suffix in (".py", ".toml") and path.parts[0] != "tests":
            (tmp_path / "tutti" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / path, tmp_path / "tutti" / path)
    return tmp_path


def test_nobody_imports_whom_they_must_not(house_copy: Path) -> None:
    done = lint_imports(house_copy)
    assert done.returncode == 0, done.stdout
    assert f"{len(CONTRACTS)} kept, 0 broken" in done.stdout


CONTRACTS = {contract["id"]: contract["name"] for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
VIOLATIONS = {
    "no-pickle": ("benchmarks", "import marshal"),
    "errors-is-a-leaf": ("backend/errors.py", "from .wire import limits"),
    "assets-is-a-leaf": ("backend/assets", "import torch"),
    "wire-is-a-leaf": ("backend/wire", "import zmq"),
    "formats-is-a-leaf": ("backend/formats", "import torch"),
    "kernels-is-a-leaf": ("kernels", "from ..backend import errors"),
    "setup-is-a-leaf": ("backend/setup", "from .. import errors"),
    "client-is-light": ("backend/client", "from ..setup import runner"),
    "nodes-see-only-the-client": ("comfy_nodes", "from ..backend import models"),
    # Not torch itself: a module of ours that imports it. The chain must be found.
    "no-torch-in-the-daemon": ("backend/broker", "from ..parallel import bad"),
    "daemon-sees-no-rank-code": ("backend/supervisor", "from ..worker import bad"),
    "ranks-see-no-daemon-code": ("backend/models", "from ..broker import bad"),
    "sampling-knows-no-model": ("backend/sampling", "from ..parallel import bad"),
    "rank-layers": ("backend/parallel", "import torch\nfrom ..models import bad"),
    "cli-on-top": ("backend/worker", "from ..cli import main"),
}
"""Contract -> where the bad line goes, and the line."""


def test_each_contract_breaks_when_it_is_violated(house_copy: Path) -> None:
    """Negative control: one bad import for each contract."""
    assert set(VIOLATIONS) == set(CONTRACTS)
    for place, line in VIOLATIONS.values():
        target = house_copy / "tutti" / place
        with open(target if target.suffix else target / "bad.py", "a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    done = lint_imports(house_copy)
    assert done.returncode == 1
    for name in CONTRACTS.values():
        assert re.search(re.escape(name) + r" BROKEN", re.sub(r"\s+", " ", done.stdout)), done.stdout
