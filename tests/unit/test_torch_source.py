"""Which torch the back end gets: the decision for every machine, and linking that never writes to where it links from."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tutti.backend.setup import backend_env, torch_source
from tutti.backend.setup.runner import Runner, SetupError
from tutti.backend.setup.torch_source import Distribution, Driver, Found

REPOSITORY = Path(__file__).resolve().parents[2]
COMFYUI_PYTHON = REPOSITORY / ".comfyui" / "0.30.0" / "venv" / "bin" / "python"

CPU = Driver(cuda=None, note="")
CUDA_12 = Driver(cuda=(12, 4), note="")
CUDA_13 = Driver(cuda=(13, 1), note="")

FITTING = Found(
    python="/comfy/bin/python",
    python_version=(3, 12),
    torch="2.11.0+cu130",
    cuda=(13, 0),
    other_device=False,
    distributions={"torch": Distribution(version="2.11.0", root=Path("/comfy/site"), files=("torch/__init__.py",))},
)
CUDA_12_BUILD = replace(FITTING, torch="2.11.0+cu126", cuda=(12, 6))
CPU_BUILD = replace(FITTING, torch="2.13.0+cpu", cuda=None)


@pytest.mark.parametrize(
    ("found", "driver"),
    [(FITTING, CUDA_13), (FITTING, CPU), (CUDA_12_BUILD, CUDA_12), (CUDA_12_BUILD, CUDA_13), (CPU_BUILD, CPU)],
)
def test_a_torch_that_fits_is_reused(found: Found, driver: Driver) -> None:
    assert torch_source.why_not_reuse(found, driver, (3, 12)) is None


@pytest.mark.parametrize(
    ("found", "driver", "reason"),
    [
        (replace(FITTING, torch=""), CUDA_13, "has no torch"),
        (replace(FITTING, python_version=(3, 10)), CUDA_13, "belongs to Python 3.10"),
        (replace(FITTING, torch="2.9.1"), CUDA_13, "older than 2.11"),
        (replace(FITTING, other_device=True, cuda=None), CUDA_13, "neither CPU nor CUDA"),
        (CPU_BUILD, CUDA_13, "CPU build"),
        (FITTING, CUDA_12, "needs CUDA 13.0 and the driver offers 12.4"),
        (
            replace(FITTING, distributions={"torch": Distribution(version="2.11.0", root=Path("/x"), files=())}),
            CUDA_13,
            "not installed from a wheel",
        ),
    ],
)
def test_a_torch_that_does_not_fit_is_refused_with_the_reason(found: Found, driver: Driver, reason: str) -> None:
    assert reason in str(torch_source.why_not_reuse(found, driver, (3, 12)))


def test_an_own_torch_that_the_driver_cannot_run_is_refused_unless_another_index_is_named() -> None:
    with pytest.raises(SetupError, match=r"needs CUDA 13\.0; the installed NVIDIA driver offers 12\.4"):
        torch_source.check_own(CUDA_12, "")
    torch_source.check_own(CUDA_12, "--index-url somewhere")
    torch_source.check_own(CUDA_13, "")
    torch_source.check_own(CPU, "")


@pytest.mark.parametrize(
    ("script", "cuda", "note"),
    [
        ("echo '| NVIDIA-SMI 580.65 Driver Version: 580.65 CUDA Version: 13.0 |'", (13, 0), "CUDA 13.0"),
        ("echo '| NVIDIA-SMI 590.44 KMD Version: 590.44 CUDA UMD Version: 13.1 |'", (13, 1), "CUDA 13.1"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", None, "version mismatch"),
        ("exit 0", None, "no output"),
    ],
)
def test_what_nvidia_smi_says_decides(tmp_path: Path, script: str, cuda: tuple[int, int] | None, note: str) -> None:
    """A script stands for nvidia-smi: this is about reading its answers, which no single machine gives all of."""
    fake = tmp_path / "fake-nvidia-smi"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o700)
    driver = torch_source.detect_driver(str(fake))
    assert driver.cuda == cuda
    assert note in driver.note


def test_without_nvidia_smi_the_machine_is_a_cpu_machine() -> None:
    driver = torch_source.detect_driver("/no/such/nvidia-smi")
    assert driver.cuda is None
    assert "no nvidia-smi" in driver.note


def test_what_cannot_be_reused_is_an_error_for_reuse_and_an_own_copy_for_auto(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True, timeout=60)
    bare, version = str(tmp_path / "bare" / "bin" / "python"), sys.version_info[:2]
    with pytest.raises(SetupError, match=r"cannot be reused: .* has no torch"):
        backend_env.choose_torch("reuse", bare, CPU, version)
    choice = backend_env.choose_torch("auto", bare, CPU, version)
    assert choice.reused is None
    assert "has no torch" in choice.reason
    assert backend_env.choose_torch("own", sys.executable, CUDA_13, version).label == "cu130"


def test_a_python_that_cannot_be_asked_is_an_error_with_a_remedy() -> None:
    with pytest.raises(SetupError, match="could not be asked"):
        torch_source.look_into("/no/such/python")


def listing(folder: Path) -> list[tuple[str, int, int]]:
    """Every file below a folder with its size and time of change."""
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return found


def test_only_torch_and_its_libraries_are_linked_and_nothing_is_written_to_the_source(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    for name in (
        "torch/__init__.py",
        "torch/__pycache__/x.pyc",
        "nvidia/cublas/lib/libcublas.so",
        "torch.dist-info/RECORD",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("value = 1\n")
    files = (
        "torch/__init__.py",
        "torch/__pycache__/x.pyc",
        "../../bin/torchrun",
        "torch.dist-info/RECORD",
        "torch/gone.py",
    )
    distributions = {
        "torch": Distribution(version="2.11.0", root=source, files=files),
        "nvidia-cublas": Distribution(version="13", root=source, files=("nvidia/cublas/lib/libcublas.so",)),
    }
    before = listing(source)
    torch_source.link_torch(replace(FITTING, distributions=distributions), site, Runner(say=lambda _: None))
    subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.value)"], check=True, env={"PYTHONPATH": str(site)}
    )
    assert listing(source) == before
    linked = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_symlink()}
    assert linked == {"torch/__init__.py", "torch.dist-info/RECORD", "nvidia/cublas/lib/libcublas.so"}
    assert list(site.rglob("*.pyc")), "byte code belongs into the new environment"


@pytest.mark.comfy
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_comfyuis_own_torch_works_when_linked_and_its_environment_stays_untouched(tmp_path: Path) -> None:
    if not COMFYUI_PYTHON.exists():
        pytest.skip("ComfyUI 0.30.0 is not installed: run `python3 install.py comfyui`")
    found = torch_source.look_into(str(COMFYUI_PYTHON))
    assert torch_source.why_not_reuse(found, CPU, found.python_version) is None
    torch_folder = found.distributions["torch"].root / "torch"
    before = listing(torch_folder)

    subprocess.run([COMFYUI_PYTHON, "-m", "venv", "--without-pip", tmp_path / "env"], check=True, timeout=60)
    version = torch_source.dotted(found.python_version)
    torch_source.link_torch(
        found, tmp_path / "env" / "lib" / f"python{version}" / "site-packages", Runner(say=lambda _: None)
    )
    # What torch needs beside its libraries comes from the lock in a real installation; here from ComfyUI, behind the links.
    script = (
        f"import site; site.addsitedir({str(torch_folder.parent)!r})\n"
        "import torch; print(torch.__file__); print((torch.ones(2, 3) @ torch.ones(3, 2)).sum().item())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        [tmp_path / "env/bin/python", "-c", script], capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.stdout.splitlines() == [
        str(tmp_path / f"env/lib/python{version}/site-packages/torch/__init__.py"),
        "12.0",
    ], done.stderr
    assert listing(torch_folder) == before
