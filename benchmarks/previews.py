"""What do live previews cost? The same Sample with and without them, turn by turn.

1,024 image and 128 text tokens; the steps are long enough for a preview in nearly every one of them, at most eight a second. In every
round a short Sample runs twice, with and without previews, in changing order; a ratio is the median over many rounds of the ratio of
the two median step times, which rank 0 measures.
"""

from __future__ import annotations

import sys
from typing import Final

from ..backend.client import Client
from ..backend.errors import InternalError
from ..backend.wire.codec import Received
from ..backend.wire.messages import Preview, Result
from .flux_job import FluxJob
from .repeated import RepeatedJob
from .report import Figure, Spread

BENCHMARK: Final = "previews"
RANKS: Final = 2
CASE: Final = f"1024 image + 128 text tokens on {RANKS} CPU ranks"
ROUNDS: Final = 60
STEPS: Final = 4
JOB: Final = FluxJob(side=64, text_tokens=128, hidden=512, depth=2, depth_single=3)


def _run(client: Client, *, previews: bool) -> tuple[float, int]:
    """The median step in milliseconds, and how many previews came."""
    seen = 0

    def listen(received: Received) -> None:
        nonlocal seen
        seen += isinstance(received.message, Preview)

    sample, tensors = JOB.sample(STEPS, previews=previews)
    result = client.sample(sample, tensors, listen).message
    if not isinstance(result, Result):
        raise InternalError("A Sample was answered with something else than a Result.")
    return result.step_ms, seen


def measure(client: Client, rounds: int) -> list[Figure]:
    """All figures of one daemon."""
    _run(client, previews=True)  # loads the model
    with_ms, without_ms, shown = list[float](), list[float](), list[float]()
    for number in range(rounds):
        for previews in (True, False) if number % 2 else (False, True):
            step_ms, seen = _run(client, previews=previews)
            (with_ms if previews else without_ms).append(step_ms)
            if previews:
                shown.append(seen)
    ratios = [a / b for a, b in zip(with_ms, without_ms, strict=True)]
    return [
        Figure(case=CASE, metric="step without previews", spread=Spread.of(without_ms), unit="ms"),
        Figure(case=CASE, metric="step with previews", spread=Spread.of(with_ms), unit="ms"),
        Figure(case=CASE, metric=f"previews in {STEPS} steps", spread=Spread.of(shown), unit=""),
        Figure(
            case=CASE,
            metric="step with previews / without",
            spread=Spread.of(ratios),
            unit="",
            baseline="the same Sample without previews, in the same round",
        ),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    repeated = RepeatedJob(
        benchmark=BENCHMARK,
        job=JOB,
        ranks=RANKS,
        measure=measure,
        option="--rounds",
        default=ROUNDS,
        counts="rounds to measure",
    )
    return repeated.run(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
