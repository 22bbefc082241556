"""How long after a cancel is every rank free again, and is the next job right?

A client cancels a Sample at a moment of its own and waits for the daemon's word that the job has ended, which comes when every rank has
left it. What that may take beyond the model call that runs at that moment is 200 ms: network, scheduling, and the control exchange.
Every cancel is followed by a short job, whose latent must have the bits of the same job before any cancel.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, field
from typing import Final

from ..backend.client import Client
from ..backend.errors import InternalError
from ..backend.wire.codec import Received
from ..backend.wire.messages import Progress
from .flux_job import FluxJob
from .repeated import RepeatedJob
from .report import Figure, Spread

BENCHMARK: Final = "cancel"
RANKS: Final = 2
CASE: Final = f"Sample on {RANKS} CPU ranks"
REPEATS: Final = 50
STEPS: Final = 40
GRACE_MS: Final = 200.0
JOB: Final = FluxJob(side=48, text_tokens=64, hidden=256, depth=2, depth_single=2)


class _Interrupted(Exception):
    """What the client's idle hook raises: the user pressed Cancel."""


@dataclass(slots=True)
class _Watch:
    """The times of one job's steps, and the moment of its cancel."""

    cancel_at_s: float
    steps_at_s: list[float] = field(default_factory=list)
    cancelled_at_s: float = 0.0

    def listen(self, received: Received) -> None:
        """Note when a step was done."""
        if isinstance(received.message, Progress) and received.message.phase == "sampling":
            self.steps_at_s.append(time.monotonic())

    def idle(self) -> None:
        """Interrupt the wait when the time has come and the job runs."""
        if self.steps_at_s and time.monotonic() >= self.cancel_at_s:
            self.cancelled_at_s = time.monotonic()
            raise _Interrupted

    @property
    def calls_ms(self) -> list[float]:
        """One call a step: the time between two steps."""
        return [1000 * (after - before) for before, after in zip(self.steps_at_s, self.steps_at_s[1:], strict=False)]


def _run_whole(client: Client) -> list[float]:
    """The calls of an undisturbed job, in milliseconds."""
    watch = _Watch(cancel_at_s=float("inf"))
    sample, tensors = JOB.sample(STEPS, previews=False)
    client.sample(sample, tensors, watch.listen, watch.idle)
    return watch.calls_ms


def _cancel_one(client: Client, after_s: float) -> tuple[float, list[float]]:
    """Time until the job has ended everywhere, and its calls until then, in milliseconds."""
    watch = _Watch(cancel_at_s=time.monotonic() + after_s)
    sample, tensors = JOB.sample(STEPS, previews=False)
    try:
        client.sample(sample, tensors, watch.listen, watch.idle)
    except _Interrupted:
        return 1000 * (time.monotonic() - watch.cancelled_at_s), watch.calls_ms
    raise InternalError(f"The job ended before it was cancelled after {after_s:.2f} s: take more steps.")


def _short_latent(client: Client) -> bytes:
    sample, tensors = JOB.sample(1, previews=False)
    return bytes(client.sample(sample, tensors, lambda received: None).tensors["latent"].data)


def measure(client: Client, repeats: int) -> list[Figure]:
    """All figures of one daemon."""
    expected = _short_latent(client)
    whole_ms = _run_whole(client)
    moments = random.Random(0)
    free_ms: list[float] = []
    in_time = right = 0
    for _ in range(repeats):
        until_free_ms, calls_ms = _cancel_one(client, moments.uniform(0, 0.5 * sum(whole_ms) / 1000))
        free_ms.append(until_free_ms)
        in_time += until_free_ms <= max(whole_ms + calls_ms) + GRACE_MS
        right += _short_latent(client) == expected
    return [
        Figure(case=CASE, metric="one call", spread=Spread.of(whole_ms), unit="ms"),
        Figure(case=CASE, metric="until every rank is free", spread=Spread.of(free_ms), unit="ms"),
        Figure.one(case=CASE, metric="until every rank is free, longest", value=max(free_ms), unit="ms"),
        Figure.one(case=CASE, metric="free within one call + 200 ms", value=100 * in_time / repeats, unit="%"),
        Figure.one(case=CASE, metric="next job right", value=100 * right / repeats, unit="%"),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    repeated = RepeatedJob(
        benchmark=BENCHMARK,
        job=JOB,
        ranks=RANKS,
        measure=measure,
        option="--repeats",
        default=REPEATS,
        counts="cancels to measure",
    )
    return repeated.run(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
