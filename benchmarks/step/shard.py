"""One rank's share of a group on one device: what it computes is measured, with stand-in peers; what it would wait for is modelled."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...backend.models.family import ModelCall
from ...backend.parallel.partition import Partition
from ...backend.parallel.plan import Plan
from ...backend.parallel.providers import provider_for
from ...backend.parallel.providers.case import case_of, draw, lengths
from ...backend.parallel.providers.check import time_ms
from ..report import Figure, Spread
from .agreement import disagreement
from .clock import Timeline, step_s, timeline
from .contestants import Step, diffusers_step, our_step
from .entries import DIFFUSERS_MODES, LABELS, Entry, short
from .links import Communication, Link, Transfer, communication
from .networks import StepModel, draw_call, draw_network, twin_of
from .peers import FakePeers, fake_mesh

WARM_UPS = 3
REMARK = (
    "Stand-in peers: a rank's own bytes come back in place of the others', so the numbers are not the picture. Compute is measured, "
    "communication is a model (bytes / rate + latency of the named link), and so is every figure that contains it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What is measured."""

    model: StepModel
    device: torch.device
    plan: Plan
    modes: Sequence[str]
    rounds: int
    link: Link
    gaps: bool

    def entries(self) -> list[Entry]:
        """The whole network on one device by diffusers, and one rank's share by us."""
        whole = [Entry(kind="diffusers", plan="ulysses=1", mode=mode) for mode in DIFFUSERS_MODES]
        return whole + [Entry(kind="ours", plan=short(self.plan), mode=mode) for mode in self.modes]


@dataclass(slots=True, kw_only=True)
class Measured:
    """What came out."""

    times: dict[str, list[float]]
    """Seconds by contestant, one per round."""
    transfers: list[Transfer]
    """Of one step of our share."""
    chunk_attention_ms: float
    timelines: dict[str, Timeline]
    notes: list[str]


def run(shard: Shard) -> Measured:
    """Prepare everybody, then measure them in turn."""
    network, call = draw_network(shard.model, shard.device), draw_call(shard.model, shard.device)
    measured = Measured(
        times={},
        transfers=[],
        chunk_attention_ms=_chunk_attention_ms(shard, network, call),
        timelines={},
        notes=[],
    )
    steps = _prepared(shard, network, call, measured)
    for step in steps.values():  # once more, in the order of the rounds
        step()
    for _ in range(shard.rounds):
        for name, step in steps.items():
            measured.times.setdefault(name, []).append(step_s(step, shard.device))
    if shard.gaps:
        measured.timelines = {name: timeline(step, shard.device) for name, step in steps.items()}
    return measured


def _prepared(shard: Shard, network: Any, call: ModelCall, measured: Measured) -> dict[str, Step]:
    steps: dict[str, Step] = {}
    references: dict[str, Tensor] = {}  # the whole network's velocity, and the share's, which is another one
    for entry in shard.entries():
        peers = None
        started = time.perf_counter()
        try:
            twin = twin_of(network, shard.model)
            if entry.kind == "ours":
                mesh, peers = fake_mesh(shard.plan, shard.device)
                step = our_step(shard.model, twin, call, mesh, entry.mode)
            else:
                step = diffusers_step(shard.model, twin, call, entry.mode)
            for _ in range(WARM_UPS):
                velocity = step()
            reason = disagreement(velocity, references.get(entry.kind), shard.model.dtype)
        except (
            Exception
        ) as error:  # a machine without a compiler, a mode that a network does not take: the others still run
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        if reason is not None:
            measured.notes.append(f"{entry.name} did not run: {reason}")
            continue
        measured.notes.append(f"{entry.name}: first {WARM_UPS} calls took {time.perf_counter() - started:.1f} s")
        references.setdefault(entry.kind, velocity.clone())
        steps[entry.name] = step
        if peers is not None:
            measured.transfers = _of_one_step(step, peers)
    return steps


def _of_one_step(step: Step, peers: FakePeers) -> list[Transfer]:
    peers.transfers.clear()
    step()
    return list(peers.transfers)


def _chunk_attention_ms(shard: Shard, network: Any, call: ModelCall) -> float:
    """The local attention of one hop: what the next hop can hide behind. Nothing where there is no ring."""
    if shard.plan.ring == 1:
        return 0.0
    mesh, _ = fake_mesh(shard.plan, shard.device)
    with torch.no_grad():
        streams = shard.model.family.arrange(network, shard.model.geometry, call).streams
    partition = Partition.equal(streams, ring=shard.plan.ring, ulysses=shard.plan.ulysses)
    heads = shard.model.heads
    head_dim = shard.model.geometry.hidden // heads
    query = call.x.new_empty(len(call.x), partition.held[0], heads, head_dim)
    provider = provider_for(query, head_dim**-0.5, partition, mesh)
    bucketed = case_of(query, head_dim**-0.5, partition, mesh)
    queries, keys = lengths(partition, bucketed.schedule)
    own = replace(bucketed, queries=queries, keys=keys)
    lanes = {call.first_head: call for call in reversed(own.calls)}  # each takes some of the heads
    return sum(time_ms(provider, *draw(own, shard.device, call), own.scale) for call in lanes.values())


def figures_of(shard: Shard, measured: Measured) -> list[Figure]:
    """Compute, modelled communication, and their sum with and without overlap; ratios within each round."""
    modelled = communication(measured.transfers, shard.link, chunk_attention_ms=measured.chunk_attention_ms)
    alone, eager = (
        Entry(kind="diffusers", plan="ulysses=1", mode="off").name,
        Entry(kind="ours", plan=short(shard.plan), mode="off").name,
    )
    figures: list[Figure] = []
    for entry in shard.entries():
        times = measured.times.get(entry.name)
        if times is None:
            continue
        metric = "step time, one device" if entry.kind == "diffusers" else "compute of one rank, measured"
        figures.append(_spread(entry.name, metric, [1000 * t for t in times], "ms"))
        if entry.kind == "ours":
            figures += _of_share(entry, times, measured.times, modelled, shard.link, alone, eager)
    figures += _traffic(shard, measured.transfers, modelled)
    for name, seen in measured.timelines.items():
        for what, value, unit in (
            ("launch gaps", seen.gaps_ms, "ms"),
            ("kernels busy", seen.busy_ms, "ms"),
            ("kernels", seen.kernels, ""),
        ):
            figures.append(Figure.one(case=name, metric=f"{what} in one step", value=value, unit=unit))
    return figures


def _of_share(
    entry: Entry,
    times: Sequence[float],
    all_times: Mapping[str, Sequence[float]],
    modelled: Communication,
    link: Link,
    alone: str,
    eager: str,
) -> list[Figure]:
    without = [1000 * t + modelled.serial_ms for t in times]
    overlapped = [1000 * t + modelled.exposed_ms for t in times]
    figures = [
        _spread(entry.name, f"step without overlap, measured + model ({link.name})", without, "ms"),
        _spread(entry.name, f"step with overlap, measured + model ({link.name})", overlapped, "ms"),
    ]
    if alone in all_times:
        paired = [1000 * a / b for a, b in zip(all_times[alone], overlapped, strict=True)]
        metric = f"{alone} on one device / step with overlap, measured / (measured + model)"
        figures.append(Figure(case=entry.name, metric=metric, spread=Spread.of(paired), unit="x", baseline=alone))
    if entry.name != eager and eager in all_times:
        paired = [a / b for a, b in zip(all_times[eager], times, strict=True)]
        metric = f"{LABELS['off']} / compute of one rank"
        figures.append(Figure(case=entry.name, metric=metric, spread=Spread.of(paired), unit="x", baseline=eager))
    return figures


def _traffic(shard: Shard, transfers: Sequence[Transfer], modelled: Communication) -> list[Figure]:
    case = short(shard.plan)
    sent_mb = sum(transfer.sent_bytes for transfer in transfers) / 1e6
    return [
        Figure.one(case=case, metric="sent by one rank in one step", value=sent_mb, unit="MB"),
        Figure.one(case=case, metric="transfers of one rank in one step", value=len(transfers), unit=""),
        Figure.one(case=case, metric=f"communication, model ({shard.link.name})", value=modelled.serial_ms, unit="ms"),
        Figure.one(
            case=case, metric=f"exposed communication, model ({shard.link.name})", value=modelled.exposed_ms, unit="ms"
        ),
    ]


def _spread(case: str, metric: str, samples: Sequence[float], unit: str) -> Figure:
    return Figure(case=case, metric=metric, spread=Spread.of(samples), unit=unit)
