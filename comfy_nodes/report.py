"""The lines that the nodes show while a job is on its way. One place, so that they sound alike."""

from __future__ import annotations

from collections.abc import Sequence

from ..backend.wire.messages import Progress, Result
from ..backend.wire.plans import shown_plan


def queued(ahead: int) -> str:
    """Before the job's turn."""
    return f"Tutti: queued behind {ahead} job{'s' if ahead > 1 else ''}"


def preparing(message: Progress) -> str:
    """While the daemon loads or compiles."""
    what = f"{message.phase} the model"
    share = f" {message.step} %" if message.phase == "loading" and message.step else ""
    return f"Tutti: {what}{share}{f' ({message.text})' if message.text else ''}"


def whole_loop(text: str, notes: Sequence[str]) -> str:
    """The whole loop runs in the daemon."""
    return _lines(f"Tutti: whole loop in the daemon{f', {text}' if text else ''}", notes)


def with_plan(line: str, plan: str) -> str:
    """The line of a loop that runs here, and how its calls run in the daemon, where that is not as usual."""
    first, *rest = line.split("\n")
    return _lines(f"{first}, {plan}", rest) if line and plan else line


def step_by_step(reason: str, notes: Sequence[str]) -> str:
    """The loop runs here, because of `reason`."""
    return _lines(f"Tutti: step by step, because {reason}", notes)


def finished(result: Result, steps: int, notes: Sequence[str]) -> str:
    """After a whole loop."""
    compression = f", {result.compression}" if result.compression else ""
    return _lines(
        f"Tutti: whole loop in the daemon, {shown_plan(result.plan)}, {steps} steps at {result.step_ms:.0f} ms{compression}",
        notes,
    )


def _lines(first: str, notes: Sequence[str]) -> str:
    return "\n".join((first, *notes))
