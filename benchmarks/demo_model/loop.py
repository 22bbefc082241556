"""The loop around a training step: learning rate, progress bar, curve, and a saved state every now and then."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from torch.optim import Optimizer

from ...backend.demo.terminal import Terminal
from .state import TrainingState

SAVE_EVERY_S: Final = 120.0
TELL_EVERY_S: Final = 30.0
"""Where no bar can be drawn, a line is printed so often."""
_SMOOTHED_OVER: Final = 50


def train(
    name: str,
    step: Callable[[int], float],
    *,
    steps: int,
    optimizers: Sequence[Optimizer],
    state: TrainingState,
    warm_up: int = 50,
    after_step: Callable[[int], None] = lambda _: None,
) -> list[tuple[int, float]]:
    """Take steps ``done..steps``; returns the curve: (step, loss smoothed over 50 steps).

    ``step(number)`` computes gradients and returns the loss. The learning rate of every group rises linearly over ``warm_up`` steps and
    falls to zero along a half cosine.
    """
    done, curve = state.load(steps)
    terminal, smoothed = Terminal(), curve[-1][1] if curve else None
    saved_s = told_s = time.monotonic()
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    for number in range(done, steps):
        rate = learning_rate(number, steps, min(warm_up, steps // 4 + 1))
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * rate
        loss = step(number)
        for optimizer in optimizers:
            optimizer.step()
        after_step(number)
        smoothed = loss if smoothed is None else smoothed + (loss - smoothed) / _SMOOTHED_OVER
        if number % _SMOOTHED_OVER == _SMOOTHED_OVER - 1 or number == steps - 1:
            curve.append((number + 1, round(smoothed, 5)))
            terminal.bar(f"{name}, loss {smoothed:.4f}", number + 1, steps)
            if not sys.stdout.isatty() and time.monotonic() - told_s > TELL_EVERY_S:
                terminal.line(f"  … {name}: step {number + 1} of {steps}, loss {smoothed:.4f}")
                told_s = time.monotonic()
        if time.monotonic() - saved_s > SAVE_EVERY_S:
            state.save(number + 1, steps, curve)
            saved_s = time.monotonic()
    if done < steps:
        state.save(steps, steps, curve)
    terminal.line(f"  ✓ {name}: {steps} steps, loss {curve[-1][1]:.4f}")
    return curve


def learning_rate(step: int, steps: int, warm_up: int) -> float:
    """The share of the peak rate at a step."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
