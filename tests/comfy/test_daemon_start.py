"""What the loader does about the daemon: finds it, starts it with a clean environment, or says what to run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tutti.backend.errors import TuttiError
from tutti.backend.wire.connection import Connection, find_connection, write_connection

from tests.comfy.rig import CHECKPOINT, MAIN_VERSION, PACKS, Stock, needs, plain, prompt, succeed
from tests.support import comfyui, daemon, workflows
from tests.support.checkpoints import write_tiny_flux
from tests.support.comfyui import ComfyServer
from tests.support.parity import FP32_TOLERANCE, relative_error

LISTED_S = 20.0
"""The daemon's list reaches the page within a fraction of a second; a busy machine gets so long."""


def test_without_a_daemon_the_error_begins_with_the_command_to_run(comfy: ComfyServer, comfy_state_dir: Path) -> None:
    run = comfy.run(prompt(plain()))
    assert run.status == "error"
    assert run.error.startswith("Run `"), run.error
    status = comfy.run(
        workflows.build(lambda w: w.add("TuttiStatus"), workflows.tutti_loader(""), text_width=1, pooled_width=1)
    )
    (text,) = next(iter(status.outputs.values()))["text"]
    assert text.startswith("Run `tutti serve`")


def test_a_daemon_that_is_gone_is_told_from_one_that_is_slow(comfy: ComfyServer, comfy_state_dir: Path) -> None:
    """A connection file whose process has died means: no daemon, at once."""
    gone = psutil.Popen(["true"])
    gone.wait()
    dead = Connection(
        endpoint="tcp://127.0.0.1:9", server_public_key="0" * 40, client_public_key="0" * 40, client_secret_key="0" * 40, pid=gone.pid
    )  # fmt: skip
    write_connection(comfy_state_dir / "connection.json", dead)
    try:
        start = time.monotonic()
        run = comfy.run(prompt(plain()))
        assert run.error.startswith("Run `"), run.error
        assert time.monotonic() - start < 3.0
    finally:
        (comfy_state_dir / "connection.json").unlink()


def listed(comfy: ComfyServer) -> list[str]:
    """The models that the loader offers."""
    info = comfy.get_json("/object_info/TuttiLoadDiffusionModel")["TuttiLoadDiffusionModel"]
    names: list[str] = info["input"]["required"]["unet_name"][1]["options"]
    return names


def test_models_that_only_the_daemon_has_are_listed_and_run(
    comfy: ComfyServer, models: Path, comfy_state_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "diffusion_models").mkdir()
    write_tiny_flux(tmp_path / "diffusion_models" / "only-there.safetensors", context_dim=64, pooled_dim=32)
    with daemon.running(tmp_path, comfy_state_dir, ranks=1, plan="ulysses=1,ring=1"):
        deadline_s = time.monotonic() + LISTED_S
        while "only-there.safetensors" not in (names := listed(comfy)):  # the page is never kept waiting for the daemon
            assert time.monotonic() < deadline_s, names
            time.sleep(0.1)
        assert CHECKPOINT in names
        succeed(comfy, prompt(plain(), workflows.tutti_loader("only-there.safetensors")))


@pytest.fixture
def starting(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ComfyServer, Path]]:
    """A ComfyUI that may start its daemon, with settings in its environment that must not reach it.

    The daemon's command is a script that writes its environment down first: the daemon's own title covers it in /proc.
    """
    needs(MAIN_VERSION)
    with daemon.private_state_dir() as state_dir:
        command = state_dir / "tutti"
        command.write_text(f'#!/bin/sh\nenv > "{state_dir}/inherited"\nexec "{daemon.TUTTI}" "$@"\n')
        command.chmod(0o700)
        environment = {
            "TUTTI_STATE_DIR": str(state_dir),
            "TUTTI_EXECUTABLE": str(command),
            "CUDA_VISIBLE_DEVICES": "7",
            "PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync",
        }
        base = tmp_path_factory.mktemp("starting")
        try:
            with comfyui.running(
                MAIN_VERSION, base, packs=PACKS, models=models, extra_environment=environment
            ) as server:
                yield server, state_dir
        finally:
            _stop_daemon(state_dir)


def test_the_loader_starts_the_daemon_with_a_clean_environment(
    stock: Stock, starting: tuple[ComfyServer, Path]
) -> None:
    server, state_dir = starting
    (expected,) = stock.latents(plain())
    run = succeed(server, prompt(plain()), timeout_s=200.0)
    assert "starting the daemon" in run.all_texts
    (ours,) = server.latents(run)
    assert relative_error(ours, expected) <= FP32_TOLERANCE, "found through the folders that ComfyUI published"
    pid = find_connection(state_dir).pid
    assert pid is not None
    inherited = (state_dir / "inherited").read_text()
    assert "CUDA_VISIBLE_DEVICES" not in inherited
    assert "PYTORCH_CUDA_ALLOC_CONF" not in inherited
    assert f"TUTTI_STATE_DIR={state_dir}" in inherited
    again = succeed(server, prompt(plain()))
    assert "starting the daemon" not in again.all_texts
    assert find_connection(state_dir).pid == pid


def _stop_daemon(state_dir: Path, timeout_s: float = 20.0) -> None:
    """End the daemon that ComfyUI started: it is nobody's child here."""
    try:
        pid = find_connection(state_dir).pid
    except (FileNotFoundError, TuttiError):
        return
    if pid is None or not psutil.pid_exists(pid):
        return
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGTERM)
    _, alive = psutil.wait_procs([process], timeout=timeout_s)
    for straggler in alive:
        straggler.kill()
