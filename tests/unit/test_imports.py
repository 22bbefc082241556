"""Importing is cheap and silent: what each module loads, and that it starts, prints and changes nothing.

The modules are found on disk, so a new one is covered by being there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("backend", "benchmarks", "comfy_nodes", "kernels")
COMFYUI_MODULES = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "nodes", "server")
"""Top-level modules that exist only inside ComfyUI."""

HEAVY = {"torch", "diffusers", "numpy", "safetensors", "triton", "xfuser"}
NETWORK = {"zmq", "msgpack", "asyncio"}


def module_names() -> list[str]:
    """Every importable module of the package, by its dotted name."""
    names = ["tutti"]
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            names.append(".".join(("tutti", *(parts[:-1] if parts[-1] == "__init__" else parts))))
    return names


MODULES = module_names()


def of(*packages: str) -> list[str]:
    """The modules of these packages (or modules)."""
    return [name for name in MODULES if any(name == package or name.startswith(package + ".") for package in packages)]


def fresh(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter, away from the repository's root."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        cwd="/",
    )


def loaded_by(module: str, *, beyond: str = "sys") -> set[str]:
    """Names that appear in ``sys.modules`` when a fresh interpreter, which has imported ``beyond``, imports ``module``."""
    script = (
        "import sys, importlib\nimportlib.import_module(sys.argv[2])\nbefore = set(sys.modules)\n"
        "importlib.import_module(sys.argv[1])\nprint('\\n'.join(set(sys.modules) - before))"
    )
    done = fresh(script, module, beyond)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def top_levels(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_importing_the_package_imports_nothing_else() -> None:
    loaded = loaded_by("tutti")
    assert {name for name in loaded if name.startswith("tutti")} == {"tutti"}
    assert top_levels(loaded) <= sys.stdlib_module_names | {"tutti"}
    assert not loaded & NETWORK


@pytest.mark.parametrize(
    "module", of("tutti.backend.broker", "tutti.backend.supervisor", "tutti.backend.cli", "tutti.backend.parallel.plan")
)
def test_the_daemon_and_the_command_line_never_import_torch(module: str) -> None:
    assert not top_levels(loaded_by(module)) & HEAVY


@pytest.mark.parametrize("module", of("tutti.backend.wire", "tutti.backend.errors"))
def test_the_wire_imports_only_the_standard_library_and_msgpack(module: str) -> None:
    loaded = loaded_by(module, beyond="msgpack")
    assert top_levels(loaded) <= sys.stdlib_module_names | {"tutti"}
    ours = {name for name in loaded if name.startswith("tutti.")}
    assert ours <= {"tutti.backend", "tutti.backend.errors", *of("tutti.backend.wire")}


@pytest.mark.parametrize("module", of("tutti.backend.setup"))
def test_the_installer_imports_only_the_standard_library(module: str) -> None:
    assert top_levels(loaded_by(module)) <= sys.stdlib_module_names | {"tutti"}


def test_the_import_probe_sees_torch_behind_an_import() -> None:
    """Negative control."""
    assert top_levels(loaded_by("safetensors.torch")) & HEAVY == {"torch", "numpy", "safetensors"}


# Imports what our modules stand on first, then each of our modules; notes what changed with each.
SURVEY = r"""
import contextlib, importlib, json, os, signal, sys, threading, warnings
for name in ("torch", "diffusers", "zmq", "msgpack", "safetensors.torch", "psutil", "setproctitle", "asyncio", "multiprocessing"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
import torch

def state():
    found = {
        "threads": [t.name for t in threading.enumerate()],
        "children": os.path.exists("/proc/self/task") and open(f"/proc/self/task/{os.getpid()}/children").read().split(),
        "sockets": sorted(t for t in map(target, os.listdir("/proc/self/fd")) if t.startswith(("socket:", "anon_inode:", "pipe:"))),
        "environment": dict(os.environ),
        "signals": [str(signal.getsignal(s)) for s in sorted(signal.valid_signals())],
        "torch": [str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
                  torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(), torch.cuda.is_initialized()],
        "path": list(sys.path), "argv": list(sys.argv), "hook": str(sys.excepthook),
    }
    return found

def target(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""

report = {}
real, log = os.dup(1), os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_TRUNC)
os.dup2(log, 1), os.dup2(log, 2)
for name in sys.argv[2:]:
    before, size = state(), os.fstat(log).st_size
    try:
        importlib.import_module(name)
        entry = {"error": ""}
    except Exception as problem:
        entry = {"error": f"{type(problem).__name__}: {problem}", "needs": getattr(problem, "name", None)}
    sys.stdout.flush(), sys.stderr.flush()
    after = state()
    entry["changed"] = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
    entry["printed"] = os.pread(log, 1000, size).decode()
    report[name] = entry
os.write(real, json.dumps(report).encode())
"""


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """Each module's entry: error, what changed, what was printed. One interpreter imports them all, in order."""
    log = tmp_path_factory.mktemp("survey") / "printed"
    done = fresh(SURVEY, str(log), *MODULES)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_importing_starts_nothing_prints_nothing_and_changes_nothing(
    module: str, survey: dict[str, dict[str, object]]
) -> None:
    entry = survey[module]
    only_in_comfyui = str(entry.get("needs")).partition(".")[0] in COMFYUI_MODULES
    assert only_in_comfyui or not entry["error"]
    assert not entry["printed"]
    assert not entry["changed"]


def test_the_survey_notices_a_module_that_starts_and_prints_and_changes(tmp_path: Path) -> None:
    """Negative control."""
    (tmp_path / "noisy.py").write_text(
        "import os, socket, threading, time\nprint('hello')\nos.environ['NOISY'] = '1'\nkept = socket.socket()\n"
        "threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\n"
    )
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SURVEY}"
    done = fresh(script, str(tmp_path / "printed"), "noisy")
    entry = json.loads(done.stdout)["noisy"]
    assert entry["printed"] == "hello\n"
    assert {"threads", "sockets", "environment"} <= set(entry["changed"])
