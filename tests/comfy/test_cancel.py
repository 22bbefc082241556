"""Cancel: the run ends at once, the ranks are free, and the next run is right."""

from __future__ import annotations

import time

import pytest

from tests.comfy.rig import Stock, plain, prompt, succeed
from tests.support.comfyui import ComfyServer, Run
from tests.support.daemon import Daemon
from tests.support.parity import FP32_TOLERANCE, relative_error

LONG = 5000
"""Steps that would take minutes."""


def after_progress(value: int) -> object:
    """Interrupt as soon as that many steps were shown."""
    return lambda run: any(kind == "progress" and data["value"] >= value for _, kind, data in run.events)


def wait_until_idle(daemon: Daemon, timeout_s: float = 5.0) -> float:
    """Seconds until the daemon has no job and its group takes work."""
    start = time.monotonic()
    while time.monotonic() - start < timeout_s:
        status = daemon.status()
        if not status.jobs and status.state == "ready":
            return time.monotonic() - start
        time.sleep(0.02)
    raise AssertionError(f"still busy after {timeout_s} s: {daemon.status()}")


def check_interrupted(run: Run) -> None:
    assert run.status == "interrupted", f"{run.status} {run.error}"
    assert run.interrupted_at_s is not None
    assert run.seconds - run.interrupted_at_s < 3.0


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"], ids=["whole loop", "step by step"])
def test_cancel_frees_the_ranks_and_the_next_run_is_right(
    stock: Stock, comfy: ComfyServer, two_ranks: Daemon, sampler: str
) -> None:
    for seed in (21, 22, 23):  # a job that was run before would be answered from the daemon's memory
        (expected,) = stock.latents(plain(sampler_name=sampler, seed=seed))
        run = comfy.run(prompt(plain(sampler_name=sampler, steps=LONG)), interrupt_when=after_progress(3))
        check_interrupted(run)
        wait_until_idle(two_ranks)
        again = succeed(comfy, prompt(plain(sampler_name=sampler, seed=seed)))
        assert relative_error(comfy.latents(again)[0], expected) <= FP32_TOLERANCE


def test_cancel_with_previews_on_leaves_nothing_of_the_old_job(
    stock: Stock, comfy: ComfyServer, two_ranks: Daemon
) -> None:
    run = comfy.run(
        prompt(plain(steps=LONG)), preview_method="latent2rgb", interrupt_when=lambda run: len(run.previews) >= 2
    )
    check_interrupted(run)
    again = succeed(comfy, prompt(plain(seed=24)), preview_method="latent2rgb")
    (expected,) = stock.latents(plain(seed=24))
    assert relative_error(comfy.latents(again)[0], expected) <= FP32_TOLERANCE
    values = [data["value"] for _, kind, data in again.events if kind == "progress"]
    assert values == sorted(values)
    assert values[-1] == 5


def test_cancel_while_the_job_waits_for_its_turn(comfy: ComfyServer, two_ranks: Daemon, busy_daemon: None) -> None:
    """Somebody else's job holds the ranks; ours is taken out of the queue."""
    run = comfy.run(prompt(plain(seed=25)), interrupt_when=lambda run: "queued behind" in run.all_texts)
    check_interrupted(run)
    assert len(two_ranks.status().jobs) == 1, "only the other client's job is left"
