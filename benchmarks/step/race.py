"""Real ranks: groups of several sizes side by side, one step at a time, everybody in every round."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..report import Figure, Spread
from ..scaling import Contestant, started
from .entries import Entry, entries_of
from .networks import StepModel

WARM_UP_ROUNDS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """What is raced."""

    model: StepModel
    device: str
    sizes: Sequence[int]
    """Of the groups."""
    modes: Sequence[str]
    rounds: int

    def entries(self) -> dict[int, list[Entry]]:
        """By size of their group."""
        return {size: entries_of(size, self.model, self.modes) for size in self.sizes}


def run(race: Race) -> tuple[dict[str, list[float]], list[str]]:
    """Step times in seconds by contestant, one per round, and a line on everybody who did not run."""
    entries = race.entries()
    with tempfile.TemporaryDirectory(prefix="tutti-step-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        groups = {size: stack.enter_context(_group(race, size, entries[size], folder)) for size in race.sizes}
        notes: list[str] = []
        running: list[tuple[str, Contestant]] = []
        for size, group in groups.items():
            reasons = [json.loads(answer) for answer in group.ask("ready")]
            for entry in entries[size]:
                reason = next((told[entry.name] for told in reasons if told[entry.name]), None)
                if reason:
                    notes.append(f"{entry.name} did not run: {reason}")
                else:
                    running.append((entry.name, group))
        times: dict[str, list[float]] = {}
        for number in range(WARM_UP_ROUNDS + race.rounds):
            for what, group in running:
                seconds = group.step_s(what)
                if number >= WARM_UP_ROUNDS:
                    times.setdefault(what, []).append(seconds)
    return times, notes


def _group(
    race: Race, size: int, entries: Sequence[Entry], folder: Path
) -> contextlib.AbstractContextManager[Contestant]:
    job = {"model": race.model.name, "entries": [asdict(entry) for entry in entries]}
    (folder / f"job-{size}.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", f"{__package__}.rank", str(folder), race.device]
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo"}
    if race.device == "cpu":
        shared["OMP_NUM_THREADS"] = "1"
    environments: list[Mapping[str, str]] = [{**shared, "RANK": str(rank)} for rank in range(size)]
    return started([command] * size, environments, folder, f"rank-of-{size}")


def figures_of(race: Race, times: Mapping[str, Sequence[float]]) -> list[Figure]:
    """Step times, and within each round: compiled over eager, ours over diffusers' context parallelism, one device over ours."""
    figures = [
        Figure(case=name, metric="step time", spread=Spread.of([1000 * t for t in samples]), unit="ms")
        for name, samples in times.items()
    ]

    def ratio(case: str, metric: str, over: str, under: str, baseline: str) -> None:
        if over in times and under in times:
            paired = [a / b for a, b in zip(times[over], times[under], strict=True)]
            figures.append(Figure(case=case, metric=metric, spread=Spread.of(paired), unit="x", baseline=baseline))

    alone = Entry(kind="diffusers", plan="ulysses=1", mode="off").name
    for size, entries in race.entries().items():
        theirs = Entry(kind="context parallel", plan=f"ulysses={size}", mode="off").name
        for entry in (entry for entry in entries if entry.kind == "ours"):
            eager = Entry(kind="ours", plan=entry.plan, mode="off").name
            if entry.name != eager:
                ratio(entry.name, "step time / eager", entry.name, eager, eager)
            if entry.plan == f"ulysses={size}":
                ratio(entry.name, "step time / diffusers context parallel", entry.name, theirs, theirs)
            ratio(entry.name, "diffusers on one device / step time", alone, entry.name, alone)
    return figures
