"""What does compressed exchange spare on slow links, and beside what others send?

Two and four ranks, each in a network namespace of its own, joined by a bridge; what gets out of each is limited by a token bucket of the kernel
(:mod:`.namespaces`). A link is so slow that it decides, and not the two cores which all ranks share. Measured, through the product's own exchange: whole
trajectories of 28 calls, the first with its key frame, of some layers of attention. Encoding, decoding and hashing are part of it, as they run on
these cores. **Emulated** is the rest of the network, by sleeping: as long as makes communication of the uncompressed ring over computation what it was at
CompactFusion's points (16:1 at 500 MB/s to 4:1 at 2000 MB/s, four ranks). From point to point the links change, and the computation does not. A fifth of
it counts as attention, which a ring can hide behind, as in FLUX.1.

* *raw*: uncompressed, by every plan; four calls of a trajectory, which are all alike, and its bytes from those. *fast, balanced, small*: the product's presets, by every plan.
* *cf-...*, *naive-1bit*: CompactFusion's formats and one bit without a base, in the ring, as published (:mod:`.baselines`).
* *stale*: a ring that uses the keys and values of the call before, so that a transfer has a whole call to travel: DistriFusion's exchange.
* *hidden*: 1 - time stood still / time of the same transfers with nothing to do beside them, from those of the first two calls. What ranks wait for one
  another, or for another thread's decoding, counts as not hidden, so that it may be less than nothing. What a rank decodes itself is work.
* *what attention can hide*: of the transfers of a ring's call, as much as its attentions to all chunks but the last take. Told where a ring is all there is.
* *cores busy*: of all ranks together. Where it comes near to two, the processor decides and not the link.
* *no limit*: the same ranks on the loopback: what coding costs where it spares nothing.

Without root or iproute2 the links are emulated too, by a transport that sleeps (:mod:`.emulated_links`); the table says so.

    python -m tutti.benchmarks.links [--json FILE] [--check] [--rounds N] [--steps N] [--ranks N ...] [--mbps M] [--points R ...] [--only NAME ...] [--rings]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .namespaces import INTERFACE, inside, shaped_links, why_not
from .report import Figure, Spread, argument_parser, finish
from .scaling import Contestant, started

BENCHMARK: Final = "links"
RAW, STALE, GOODPUT = "raw", "stale", "goodput"
PRESETS: Final = ("fast", "balanced", "small")
BASELINES: Final = ("naive-1bit", "cf-1bit", "cf-2bit", "cf-lowrank", STALE)
POINTS: Final = (16.0, 8.0, 5.3, 4.0)
"""Communication of the uncompressed ring over computation."""
ATTENTION_SHARE: Final = 0.2
BF16_BYTES: Final = 2
RAW_STEPS: Final = 4
"""Calls of an uncompressed trajectory that are made: all of them are alike."""
GOODPUT_S: Final = 0.25
"""How long a link is busy when its goodput is measured."""
NO_LIMIT: Final = "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every rank holds of one model call."""

    tokens: int
    heads: int
    head_dim: int
    layers: int
    steps: int

    def ring_bytes(self, ranks: int) -> int:
        """What a rank sends in one call of the uncompressed ring: keys and values of every layer, to all others."""
        return self.layers * (ranks - 1) * 2 * self.tokens * self.heads * self.head_dim * BF16_BYTES

    def compute_s(self, ranks: int, bits_per_s: float, point: float) -> float:
        """Of one call, so that the ring's bytes take ``point`` times as long."""
        return 8 * self.ring_bytes(ranks) / bits_per_s / point


@dataclass(frozen=True, slots=True)
class Entry:
    """Who takes part."""

    contestant: str
    plan: str

    @property
    def name(self) -> str:
        """In the table."""
        return f"{self.contestant}, {self.plan}"


def plans(ranks: int) -> list[str]:
    """The ring first, then Ulysses."""
    both = [f"ring={ranks // 2},ulysses=2"] if ranks > 2 else []
    return [f"ring={ranks}", f"ulysses={ranks}", *both]


def entries(ranks: int, only: Sequence[str] = (), *, rings: bool = False) -> list[Entry]:
    """All of them, or uncompressed ones and ``only`` these. ``rings``: presets in the ring alone."""
    ring = plans(ranks)[0]
    everyone = [Entry(RAW, plan) for plan in plans(ranks)]
    everyone += [Entry(preset, plan) for preset in PRESETS for plan in ([ring] if rings else plans(ranks))]
    everyone += [Entry(baseline, ring) for baseline in BASELINES]
    return [entry for entry in everyone if not only or entry.contestant in (RAW, *only)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One, by the slowest rank."""

    step_s: float
    sent_bytes: float
    waited_s: float
    alone_s: float
    """Of its transfers, with nothing else to do."""
    hideable_s: float
    """Of these, what attentions last long enough to hide: in a ring, those to all chunks but the last."""
    cores_busy: float

    @classmethod
    def of(cls, answers: Sequence[dict[str, float]], *, made: int, steps: int) -> Trajectory:
        """What the ranks say of the calls that were ``made``, of a trajectory of so many ``steps``."""
        took_s = max(answer["trajectory_s"] for answer in answers)
        slowest = max(answers, key=lambda answer: answer["waited_s"])
        return cls(
            step_s=took_s / made,
            sent_bytes=max(answer["bytes"] for answer in answers) * steps / made,
            waited_s=slowest["waited_s"],
            alone_s=slowest["alone_s"],
            hideable_s=slowest["hideable_s"],
            cores_busy=sum(answer["cpu_s"] for answer in answers) / took_s,
        )

    @property
    def hidden(self) -> float:
        """Share of the transfers that nobody stood still for."""
        return 1 - self.waited_s / self.alone_s

    @property
    def hidden_of_hideable(self) -> float:
        """Share of what could be hidden that was."""
        return (self.alone_s - self.waited_s) / self.hideable_s


Measured = dict[tuple[str, Entry], list[Trajectory]]
"""(Point, entry) -> one trajectory a round."""


@contextlib.contextmanager
def started_ranks(ranks: int, work: Work, bits_per_s: float | None, *, emulated: bool) -> Iterator[Contestant]:
    """The ranks, behind links of this speed; ``None``: on the loopback, without a limit."""
    settings: dict[str, Any] = {name: getattr(work, name) for name in Work.__dataclass_fields__}
    settings["emulated_bits_per_s"] = bits_per_s if emulated else None
    with tempfile.TemporaryDirectory(prefix="tutti-links-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        command = [sys.executable, "-m", f"{__package__}.links_rank", name]
        commands, interface = [command] * ranks, "lo"
        if bits_per_s is not None and not emulated:
            namespaces = stack.enter_context(shaped_links(ranks, bits_per_s))
            commands, interface = [inside(namespace, command) for namespace in namespaces], INTERFACE
        shared = {"WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface}
        environments: list[Mapping[str, str]] = [{**shared, "RANK": str(rank)} for rank in range(ranks)]
        yield stack.enter_context(started(commands, environments, folder, "rank"))


def ask(ranks: Contestant, entry: Entry, compute_s: float, steps: int) -> Trajectory:
    """One trajectory."""
    made = min(steps, RAW_STEPS) if entry.contestant == RAW else steps
    order = {
        "contestant": entry.contestant, "plan": entry.plan, "steps": made,
        "compute_s": compute_s, "attention_share": ATTENTION_SHARE,
    }  # fmt: skip
    return Trajectory.of([json.loads(answer) for answer in ranks.ask(json.dumps(order))], made=made, steps=steps)


def goodput_of(ranks: Contestant, bits_per_s: float) -> float:
    """Of the slowest rank's link."""
    order = {"contestant": GOODPUT, "bytes": int(bits_per_s / 8 * GOODPUT_S)}
    return min(float(json.loads(answer)["bits_per_s"]) for answer in ranks.ask(json.dumps(order)))


def measure(ranks: int, work: Work, options: argparse.Namespace, *, emulated: bool) -> list[Figure]:
    """All figures of a group of this size."""
    compute_s = work.compute_s(ranks, options.mbps * 1e6, POINTS[0])
    members = entries(ranks, options.only, rings=options.rings)
    found, goodput = Measured(), list[float]()
    speeds: dict[str, float | None] = {
        f"{point:g}:1": options.mbps * 1e6 * POINTS[0] / point for point in options.points
    }
    for point, bits_per_s in {**speeds, NO_LIMIT: None}.items():
        with started_ranks(ranks, work, bits_per_s, emulated=emulated) as group:
            warm_up(group, members)
            for _ in range(options.rounds):
                if bits_per_s is not None:
                    goodput.append(goodput_of(group, bits_per_s) / bits_per_s)
                for entry in members:
                    found.setdefault((point, entry), []).append(ask(group, entry, compute_s, work.steps))
                    tell(point, entry, found[point, entry][-1])
    return figures_of(found, ranks, goodput)


def tell(point: str, entry: Entry, trajectory: Trajectory) -> None:
    """A line while it runs: a trajectory takes a minute."""
    print(f"  {point}  {entry.name}: {1000 * trajectory.step_s:.0f} ms a step", flush=True)


def warm_up(ranks: Contestant, members: Sequence[Entry]) -> None:
    """Two calls of everybody: connections, and whatever is slow only once."""
    for entry in members:
        ask(ranks, entry, 0.0, 2)


def figures_of(found: Measured, ranks: int, goodput: Sequence[float]) -> list[Figure]:
    """Times, bytes, and what is gained over the uncompressed ring and over uncompressed Ulysses. ``goodput``: shares of a link's limit."""
    group = f"{ranks} ranks"
    share = Spread.of(goodput)
    figures = [Figure(case=group, metric="goodput / limit of a link", spread=share, unit="x", baseline="limit")]
    ring, ulysses = (Entry(RAW, plan) for plan in plans(ranks)[:2])
    for entry in dict.fromkeys(entry for _, entry in found):
        sent = next(runs[0].sent_bytes for (_, one), runs in found.items() if one == entry)
        case = f"{group}, {entry.name}"
        figures.append(Figure.one(case=case, metric="bytes of a trajectory, per rank", value=sent, unit="bytes"))
    for (point, entry), runs in found.items():
        case = f"{group}, {entry.name}, {point}"
        steps = Spread.of([1000 * run.step_s for run in runs])
        figures.append(Figure(case=case, metric="time of a step", spread=steps, unit="ms"))
        if point == NO_LIMIT:
            figures.append(_ratio(case, f"time / {RAW} time", runs, found[point, Entry(RAW, entry.plan)], entry.plan))
            continue
        for name, other in (("ring", ring), ("ulysses", ulysses)):
            figures.append(_ratio(case, f"uncompressed {name} / this", found[point, other], runs, other.name))
        hidden, busy = Spread.of([run.hidden for run in runs]), Spread.of([run.cores_busy for run in runs])
        figures.append(Figure(case=case, metric="hidden share of transfers", spread=hidden, unit="share"))
        if min(run.hideable_s for run in runs) > 0:
            of_hideable = Spread.of([run.hidden_of_hideable for run in runs])
            figures.append(Figure(case=case, metric="hidden / what attention can hide", spread=of_hideable, unit="x"))
        figures.append(Figure(case=case, metric="cores busy", spread=busy, unit="cores"))
    return figures


def _ratio(case: str, metric: str, over: Sequence[Trajectory], under: Sequence[Trajectory], baseline: str) -> Figure:
    """Of the times, round by round."""
    paired = [a.step_s / b.step_s for a, b in zip(over, under, strict=True)]
    return Figure(case=case, metric=metric, spread=Spread.of(paired), unit="x", baseline=baseline)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="measured rounds (default: 1)")
    parser.add_argument(
        "--steps", type=int, default=28, help="calls of a trajectory, its key frame included (default: 28)"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], choices=(2, 4), help="(default: 2 4)")
    parser.add_argument("--mbps", type=float, default=5.0, help="the links at 16:1, in Mbit/s (default: 5)")
    parser.add_argument(
        "--points",
        type=float,
        nargs="+",
        default=list(POINTS),
        help="communication over computation (default: the paper's)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        choices=(*PRESETS, *BASELINES),
        metavar="NAME",
        help="these contestants, and raw",
    )
    parser.add_argument("--rings", action="store_true", help="presets in the ring alone")
    parser.add_argument("--emulated", action="store_true", help="emulate the links, as without root")
    for name, value in (("tokens", 544), ("heads", 12), ("head-dim", 128), ("layers", 1)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"of each rank (default: {value})")
    options = parser.parse_args(arguments)
    reason = "asked for" if options.emulated else why_not()
    print(
        f"links: {options.mbps:g} Mbit/s out of each rank at 16:1, "
        + (f"EMULATED ({reason})" if reason else "by the kernel")
    )
    print("rest of the network: emulated by sleeping; attention, encoding, decoding and transfers: measured")
    work = Work(**{name: getattr(options, name) for name in Work.__dataclass_fields__})
    figures = [figure for ranks in options.ranks for figure in measure(ranks, work, options, emulated=bool(reason))]
    return finish(BENCHMARK, figures, options)


if __name__ == "__main__":
    sys.exit(main())
