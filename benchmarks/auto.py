"""What does ``compression=auto`` cost where there is nothing to gain? The same Sample with and without it, turn by turn, on ranks of one host.

Over the loopback a codec costs more than it spares. ``auto`` has to find that out, by trying: the first job contains its trial, and is told apart. In every
round a Sample of 28 steps runs with each, in changing order; a ratio is that of two whole jobs of a round, from Sample to Result. The control beside them
is ``balanced``, which does not ask whether it pays.

    python -m tutti.benchmarks.auto [--json FILE] [--check] [--rounds N]
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Final

from ..backend.client import Client
from ..backend.errors import InternalError
from ..backend.wire.messages import Result
from .flux_job import FluxJob
from .repeated import RepeatedJob
from .report import Figure, Spread

BENCHMARK: Final = "auto"
RANKS: Final = 2
PLANS: Final = (f"ring={RANKS}", f"ulysses={RANKS}")
OFF, AUTO, CONTROL = "off", "auto", "balanced"
ROUNDS: Final = 12
STEPS: Final = 28
JOB: Final = FluxJob(side=64, text_tokens=128, hidden=512, depth=2, depth_single=3)


def step_ms(client: Client, plan: str, compression: str, said: list[bool] | None = None) -> float:
    """A whole job over its steps, from Sample to Result, in milliseconds. ``said``: gets whether its ranks compressed a call."""
    sample, tensors = JOB.sample(STEPS, previews=False)
    on = replace(sample.on, plan=f"{plan},compression={compression}")
    began_s = time.perf_counter()
    result = client.sample(replace(sample, on=on), tensors, lambda _: None).message
    took_s = time.perf_counter() - began_s
    if not isinstance(result, Result):
        raise InternalError("A Sample was answered with something else than a Result.")
    if said is not None:
        said.append("fewer bytes" in result.compression)
    return 1000 * took_s / STEPS


def measure(client: Client, rounds: int) -> list[Figure]:
    """All figures of one daemon."""
    figures = list[Figure]()
    for plan in PLANS:
        step_ms(client, plan, OFF)  # loads the model
        figures += _of_plan(client, plan, rounds)
    return figures


def _of_plan(client: Client, plan: str, rounds: int) -> list[Figure]:
    case = f"{plan} on CPU ranks of one host"
    tried = list[bool]()
    plain_ms, first_ms = step_ms(client, plan, OFF), step_ms(client, plan, AUTO, tried)
    if not all(tried):
        raise InternalError("The first job of auto is to try compression: its ranks say that nothing was compressed.")
    times: dict[str, list[float]] = {OFF: [], AUTO: [], CONTROL: []}
    compressed: dict[str, list[bool]] = {compression: [] for compression in times}
    for number in range(rounds):
        order = list(times) if number % 2 else list(times)[::-1]
        for compression in order:
            times[compression].append(step_ms(client, plan, compression, compressed[compression]))

    def ratio(compression: str) -> Figure:
        paired = [a / b for a, b in zip(times[compression], times[OFF], strict=True)]
        return Figure(
            case=case, metric=f"step with {compression} / off", spread=Spread.of(paired), unit="x", baseline=OFF
        )

    return [
        Figure(case=case, metric="step with off", spread=Spread.of(times[OFF]), unit="ms"),
        Figure.one(case=case, metric="first auto job / off", value=first_ms / plain_ms, unit="x", baseline=OFF),
        ratio(AUTO),
        ratio(CONTROL),
        Figure.one(case=case, metric="auto jobs that compressed", value=sum(compressed[AUTO]), unit="jobs"),
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
