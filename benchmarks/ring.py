"""What does a ring's schedule hide? The ring loop alone, four ranks, by every schedule, on links of a stated speed.

Measured: the wall time of one attention by four real gloo ranks through the product's own schedules, the slowest rank counting. Emulated: the
links (:mod:`.emulated_links`: real transfers, and a sleep until a link of that speed would be done) and the time of an attention (:mod:`.timeline`: a real one
of a few tokens, and a sleep), because four ranks share the cores of one machine. So the figures say what a schedule overlaps and how many
bytes it sends over which link, not how fast any hardware is.

* *hop = attention*: the next chunk takes as long to come as this one takes to be attended to. With both hidden behind one another a loop takes
  the sum of its attentions; a serial ring takes 1.75 times as long.
* *bound by links*: a hop takes ten times as long as an attention. Here the second direction of a link counts, where it has one.

Schedules take turns within a round; a ratio is the median over rounds of the ratio within a round. *predicted* is the cost model of
:mod:`..backend.planning.schedules`, not a measurement.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..backend.planning.schedules import Links, RingWork, Topology, choose_schedule, predicted_s
from .report import Figure, Spread, argument_parser, finish
from .scaling import Contestant, started

BENCHMARK = "ring"
RANKS = 4
HOP_S = 0.1
"""One chunk of keys and values over one link."""
TOKENS, HEADS, HEAD_DIM = 32, 4, 64
"""Of each rank: real tensors, float32, far below what the emulated times allow for."""
ROW_BYTES = TOKENS * HEADS * HEAD_DIM * 4
LSE_BYTES = TOKENS * HEADS * 4
WARM_UP_ROUNDS = 1
COMPUTE = "attentions alone"
SERIAL = "serial ring"
"""A ring whose prefetch waits at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Links, work, and who takes part."""

    topology: Topology
    attend_s: float
    contestants: tuple[str, ...]

    @property
    def links(self) -> Links:
        """What the cost model is told."""
        return Links(topology=self.topology, bytes_per_s=2 * ROW_BYTES / HOP_S)

    @property
    def work(self) -> RingWork:
        """What the cost model is told."""
        return work(self.attend_s)


def work(attend_s: float, *, ranks: int = RANKS, queries_per_key: float = 1.0) -> RingWork:
    """One attention of this benchmark's tensors."""
    query_bytes = int(ROW_BYTES * queries_per_key)
    return RingWork(
        ranks=ranks,
        attend_s=attend_s,
        query_bytes=query_bytes,
        key_value_bytes=2 * ROW_BYTES,
        result_bytes=query_bytes + int(LSE_BYTES * queries_per_key),
    )


BALANCED = "hop = attention"
MESH = "duplex mesh, bound by links"
NEIGHBOURS = "duplex neighbours, bound by links"
SINGLE_PORT = "single port, bound by links"
SETTINGS: Mapping[str, Setting] = {
    BALANCED: Setting(
        topology=Topology.DUPLEX_MESH,
        attend_s=HOP_S,
        contestants=(COMPUTE, SERIAL, "ring", "prefetch-2", "allgather", "bidirectional", "tokenring"),
    ),
    MESH: Setting(
        topology=Topology.DUPLEX_MESH, attend_s=HOP_S / 10, contestants=("ring", "tokenring", "bidirectional")
    ),
    NEIGHBOURS: Setting(
        topology=Topology.DUPLEX_NEIGHBOURS, attend_s=HOP_S / 10, contestants=("ring", "bidirectional")
    ),
    SINGLE_PORT: Setting(
        topology=Topology.SINGLE_PORT, attend_s=HOP_S / 10, contestants=("ring", "tokenring", "bidirectional")
    ),
}
Times = dict[tuple[str, str], list[float]]


def start_ranks(folder: Path) -> contextlib.AbstractContextManager[Contestant]:
    """Four ranks with one thread each."""
    command = [sys.executable, "-m", f"{__package__}.ring_rank", str(folder)]
    shared = {"WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return started([command] * RANKS, [{**shared, "RANK": str(rank)} for rank in range(RANKS)], folder, "rank")


def measure(rounds: int) -> Times:
    """Loop times in seconds by setting and contestant, one per round."""
    times: Times = {}
    with tempfile.TemporaryDirectory(prefix="tutti-ring-") as folder, start_ranks(Path(folder)) as ranks:
        for number in range(WARM_UP_ROUNDS + rounds):
            for case, setting in SETTINGS.items():
                for contestant in setting.contestants:
                    seconds = ranks.step_s(f"{case}/{contestant}")
                    if number >= WARM_UP_ROUNDS:
                        times.setdefault((case, contestant), []).append(seconds)
    return times


def figures_of(times: Times) -> list[Figure]:
    """Loop times, the promised ratios, and what the model says."""
    figures = [
        Figure(case=case, metric=f"{contestant}, loop time", spread=Spread.of([1000 * t for t in samples]), unit="ms")
        for (case, contestant), samples in times.items()
    ]

    def ratio(case: str, over: str, under: str, metric: str) -> None:
        paired = [a / b for a, b in zip(times[case, over], times[case, under], strict=True)]
        figures.append(Figure(case=case, metric=metric, spread=Spread.of(paired), unit="x", baseline=under))

    for contestant in SETTINGS[BALANCED].contestants[1:]:
        ratio(BALANCED, contestant, COMPUTE, f"{contestant} / sum of attentions")
    for case in (MESH, NEIGHBOURS, SINGLE_PORT):
        for contestant in SETTINGS[case].contestants[1:]:
            ratio(case, "ring", contestant, f"ring / {contestant}")
    return [*figures, *predictions(times), second_directions_chosen()]


def predictions(times: Times) -> list[Figure]:
    """The cost model's time over the measured median, where it has one."""
    figures = []
    for (case, contestant), samples in times.items():
        predicted = predicted_s(contestant, SETTINGS[case].work, SETTINGS[case].links)
        if predicted is not None:
            value = predicted / Spread.of(samples).p50
            figures.append(Figure.one(case=case, metric=f"{contestant}, predicted / measured", value=value, unit="x"))
    return figures


def second_directions_chosen() -> Figure:
    """How often the model chooses another schedule than the ring where every rank has a single port: for works of every kind."""
    links = SETTINGS[SINGLE_PORT].links
    works = [
        work(attend_s, ranks=ranks, queries_per_key=ratio)
        for attend_s, ranks, ratio in itertools.product((0, HOP_S / 10, HOP_S, 10 * HOP_S), (2, 4, 8), (0.1, 1, 10))
    ]
    chosen = sum(choose_schedule(one, links) != "ring" for one in works)
    return Figure.one(
        case=SINGLE_PORT, metric="works for which another schedule is chosen", value=chosen, unit=f"of {len(works)}"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds (default: 11)")
    options = parser.parse_args(arguments)
    return finish(BENCHMARK, figures_of(measure(options.rounds)), options)


if __name__ == "__main__":
    sys.exit(main())
