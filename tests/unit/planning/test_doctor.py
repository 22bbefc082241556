"""doctor: on this machine, on broken ones, and what it prints."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq
from tutti.backend.cli import doctor as cli_doctor
from tutti.backend.cli.doctor import as_text
from tutti.backend.planning import installation, machine
from tutti.backend.planning.devices import Gpu
from tutti.backend.planning.findings import Finding, good, note, problem

TUTTI = Path(sys.executable).with_name("tutti")
ONE_GPU = (Gpu(0, "GPU-1", "Test GPU", 24576, "500.0"),)


def doctor(state_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TUTTI), "doctor", "--state-dir", str(state_dir), *words],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.topic: finding.level for finding in findings}


def test_this_machine_is_healthy_and_the_json_says_so(state_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "diffusion_models").mkdir()
    done = doctor(state_dir, "--json", "--models", str(tmp_path))
    answer = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert answer["healthy"] is True
    topics = {finding["topic"]: finding["level"] for finding in answer["findings"]}
    assert topics["torch"] == topics["libzmq"] == topics["state"] == topics["models"] == "good"
    assert topics["daemon"] == topics["compression"] == "note"
    (said,) = (finding for finding in answer["findings"] if finding["topic"] == "compression")
    assert said["text"].startswith("off, unless a plan names one")
    assert "approximate" in said["text"]


@pytest.mark.parametrize(("words", "status"), [([], 1), (["--installation"], 0)])
def test_a_failed_daemon_is_a_problem_but_not_of_the_installation(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], status: int
) -> None:
    """Or a failed daemon would keep the installer from switching to the environment that mends it."""
    monkeypatch.setattr(cli_doctor, "_check_daemon", lambda _: problem("daemon", "its worker group failed", "mend it"))
    parser = argparse.ArgumentParser()
    cli_doctor.add_arguments(parser)
    assert cli_doctor.run(parser.parse_args(["--json", "--state-dir", str(state_dir), *words])) == status
    topics = {finding["topic"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert {"torch", "libzmq", "state"} <= topics
    assert ({"daemon", "models"} <= topics) is (not words)


def test_a_state_folder_that_others_can_read_is_a_problem_with_its_fix(state_dir: Path) -> None:
    state_dir.chmod(0o755)
    done = doctor(state_dir)
    assert done.returncode == 1
    assert "✗ state" in done.stdout
    assert "chmod 700" in done.stdout
    assert done.stdout.rstrip().endswith("1 problem(s): see the lines with ✗.")


def test_a_missing_and_an_old_package_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[str], str] = importlib.metadata.version

    def version(name: str) -> str:
        if name == "psutil":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.6.1+cpu" if name == "torch" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {finding.topic: finding for finding in installation.check_packages()}
    assert found["psutil"].level == found["torch"].level == "problem"
    assert "2.6.1" in found["torch"].text
    assert found["psutil"].fix == installation.REINSTALL
    assert found["diffusers"].level == "good"


def test_a_demo_model_that_is_not_whole_is_a_note_with_the_remedy(tmp_path: Path) -> None:
    assert cli_doctor._check_demo_model().level == "good"
    finding = cli_doctor._check_demo_model(tmp_path)
    assert (finding.level, finding.topic) == ("note", "demo model")
    assert finding.fix.startswith(
        "Install Tutti again: tutti_demo_flux.safetensors, a file of its demo model, is missing"
    )


def test_an_old_libzmq_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.check_zmq().level == "good"
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    assert installation.check_zmq().level == "problem"


def test_a_torch_that_does_not_load_is_told_with_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_ASK_TORCH", "raise OSError('libtorch.so: cannot open')")
    (finding,) = installation.check_torch(())
    assert finding.level == "problem"
    assert "libtorch.so" in finding.text


def test_a_gpu_that_torch_does_not_see_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"cuda": None, "gpus": 0, "gloo": True, "nccl": False, "capabilities": []}
    monkeypatch.setattr(installation, "_ask_torch", lambda: answer)
    (finding,) = installation.check_torch(ONE_GPU)
    assert finding.level == "problem"
    assert "without CUDA" in finding.text


def test_two_gpus_without_nccl_are_a_problem_and_missing_kernels_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"cuda": "13.0", "gpus": 2, "gloo": True, "nccl": False, "capabilities": [[9, 0], [9, 0]]}
    monkeypatch.setattr(installation, "_ask_torch", lambda: answer)
    found = levels(list(installation.check_torch(ONE_GPU * 2)))
    assert found["devices"] == "good"
    assert found["nccl"] == "problem"


def test_little_shared_memory_is_a_note_with_the_containers_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 1024**2))
    (finding,) = machine.check_shared_memory()
    assert finding.level == "note"
    assert "--shm-size" in finding.fix


def test_a_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    (healthy,) = machine.check_state_dir(state_dir)
    assert healthy.level == "good"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1024**2))
    (finding,) = machine.check_state_dir(state_dir)
    assert finding.level == "problem"


def test_looking_at_a_state_folder_does_not_make_it(tmp_path: Path) -> None:
    (finding,) = machine.check_state_dir(tmp_path / "not" / "yet")
    assert finding.level == "good"
    assert "first start" in finding.text
    assert list(tmp_path.iterdir()) == []


def test_a_state_folder_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = machine.check_state_dir(tmp_path / "file" / "state")
    assert finding.level == "problem"


def test_the_page_aligns_topics_and_puts_fixes_below() -> None:
    page = as_text([good("a", "fine"), note("longer", "odd", "Do this."), problem("b", "bad", "Do that.")])
    assert page.splitlines() == [
        "  ✓ a       fine",
        "  · longer  odd",
        "            Do this.",
        "  ✗ b       bad",
        "            Do that.",
        "",
        "1 problem(s): see the lines with ✗.",
    ]
