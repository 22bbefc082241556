"""A rank that is killed while it samples: the node names it, the group comes back by itself, and the next run is right."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from tests.comfy.rig import Stock, plain, prompt, succeed
from tests.support import daemon
from tests.support.comfyui import ComfyServer, Run
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.workflows import Build


def run_and_kill(comfy: ComfyServer, victim: int, build: Build) -> Run:
    """Run `build`, and kill process `victim` when three steps were shown."""
    killed = threading.Event()

    def watch(run: Run) -> bool:
        if not killed.is_set() and any(kind == "progress" and data["value"] >= 3 for _, kind, data in run.events):
            killed.set()
            os.kill(victim, signal.SIGKILL)
        return False

    run = comfy.run(prompt(build), interrupt_when=watch, timeout_s=120.0)
    assert killed.is_set()
    return run


def check_named(run: Run) -> None:
    assert run.status == "error", run.all_texts
    assert "rank 1" in run.error
    assert "SIGKILL" in run.error


def test_a_rank_killed_in_a_whole_loop_is_named_and_the_next_run_is_right(
    stock: Stock, comfy: ComfyServer, models: Path, comfy_state_dir: Path
) -> None:
    (expected,) = stock.latents(plain(seed=31))
    with daemon.running(models, comfy_state_dir, ranks=2, plan="ulysses=2,ring=1") as started:
        check_named(run_and_kill(comfy, started.status().ranks[1].pid, plain(steps=5000)))
        again = succeed(comfy, prompt(plain(seed=31)))
    assert relative_error(comfy.latents(again)[0], expected) <= FP32_TOLERANCE
    assert "the worker group is" in again.all_texts, "the node tells that it waits for the group"


def test_a_rank_killed_step_by_step_is_named_or_costs_nothing_but_time(
    stock: Stock, comfy: ComfyServer, models: Path, comfy_state_dir: Path
) -> None:
    """Killed inside a call it fails the run; killed between two calls it does not, because the loop is in ComfyUI."""
    build = plain(sampler_name="euler_ancestral", steps=40)
    (expected,) = stock.latents(build)
    with daemon.running(models, comfy_state_dir, ranks=2, plan="ulysses=2,ring=1") as started:
        run = run_and_kill(comfy, started.status().ranks[1].pid, build)
        if run.status != "success":
            check_named(run)
            run = succeed(comfy, prompt(build))
        assert started.status().restarts == 1
    assert relative_error(comfy.latents(run)[0], expected) <= FP32_TOLERANCE
