"""One of the ranks of the links benchmark: runs a whole trajectory for every line of standard input, an order as JSON, and answers with JSON."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..backend.compression.policy import PRESETS, Preset
from ..backend.compression.store import ResidualStore
from ..backend.errors import InternalError
from ..backend.parallel import ahead, usp
from ..backend.parallel.ahead import Values, begin
from ..backend.parallel.exchange import Exchange, Parcel, RawCodec
from ..backend.parallel.group import WorkerGroup
from ..backend.parallel.mesh import SequenceMesh
from ..backend.parallel.partition import Partition
from ..backend.parallel.pending import Pending
from ..backend.parallel.plan import Plan
from ..backend.parallel.providers import choose_provider
from ..backend.parallel.residual import ResidualHops
from ..backend.parallel.transport import Message, Transport, gather_bytes
from ..backend.parallel.usp import CallContext, attend, running_call
from .baselines import BASELINES, StaleExchange
from .emulated_links import EmulatedLinks, ThrottledTransport
from .links import GOODPUT, RAW, STALE
from .published_walk import published_walk
from .timeline import PacedAttention, Timeline
from .wrapped_transport import WrappedTransport

CPU = torch.device("cpu")
DTYPE = torch.bfloat16
STORE_BYTES = 1 << 32

ContextOf = Callable[[int], CallContext]
"""Layer -> the call that its attention is of."""


class WaitingTransport(WrappedTransport):
    """Passes everything on, and counts how long this rank's own thread stood still for it. What it has recorded it can send once more."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.waited_s = 0.0
        self.recorded: list[Callable[[], None]] | None = None
        """Transfers, to be made again and waited for; ``None``: they are not recorded."""

    def waiting(self, wait: Callable[[], None]) -> None:
        """A thread that waits in the place of a GPU's stream holds nobody up."""
        began_s = time.perf_counter()
        wait()
        if threading.current_thread() is threading.main_thread():
            self.waited_s += time.perf_counter() - began_s

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        """Start a hop; waiting for it counts."""
        self._record(lambda: self._inner.hop(received, sent, group).wait())
        return _Waiting(self, self._inner.hop(received, sent, group, after))

    def all_to_all(
        self,
        received: Tensor,
        sent: Tensor,
        received_splits: Sequence[int],
        sent_splits: Sequence[int],
        group: ProcessGroup,
    ) -> None:
        """All of it is waiting."""

        def exchange() -> None:
            self._inner.all_to_all(received, sent, received_splits, sent_splits, group)

        self._record(exchange)
        self.waiting(exchange)

    def _record(self, transfer: Callable[[], None]) -> None:
        if self.recorded is not None:
            self.recorded.append(transfer)

    def all_gather(self, gathered: Tensor, own: Tensor, group: ProcessGroup) -> None:
        """All of it is waiting."""
        self.waiting(lambda: self._inner.all_gather(gathered, own, group))


class _Waiting:
    def __init__(self, transport: WaitingTransport, hop: Pending) -> None:
        self._transport, self._hop = transport, hop

    def wait(self) -> None:
        self._transport.waiting(self._hop.wait)


class CountedAhead:
    """Opens parcels ahead as the product does, and counts how long this rank's own thread stood still for one that another thread was waiting for, or decoding."""

    def __init__(self, transport: WaitingTransport) -> None:
        self._transport = transport

    def begin(self, work: Callable[[], Values], device: torch.device) -> Callable[[], Values]:
        """See :func:`.ahead.begin`."""
        opened_by: list[threading.Thread] = []

        def noted() -> Values:
            opened_by.append(threading.current_thread())
            return work()

        opened = begin(noted, device)

        def value() -> Values:
            began_s = time.perf_counter()
            found = opened()
            if opened_by != [
                threading.current_thread()
            ]:  # what it does itself is work, and its waits are counted where they are
                self._transport.waited_s += time.perf_counter() - began_s
            return found

        return value


class Runner:
    """What stays from trajectory to trajectory."""

    def __init__(self, group: WorkerGroup, settings: dict[str, Any]) -> None:
        self._group = group
        self._settings = settings
        self.transport = WaitingTransport(_links(group.transport, settings["emulated_bits_per_s"]))
        ahead.begin = CountedAhead(self.transport).begin
        self._timeline = Timeline()
        """Of the running trajectory's attentions."""
        self._steps = self._trajectory()

    def _trajectory(self) -> list[list[list[Tensor]]]:
        """q, k, v ``[1, n, H, D]`` of this rank for every step and layer, made before anything is timed."""
        n, H, D = (self._settings[name] for name in ("tokens", "heads", "head_dim"))
        layers, steps = self._settings["layers"], self._settings["steps"]
        walks = [
            [
                [
                    x.to(DTYPE).view(1, n, H, D) / 10
                    for x in published_walk(n, H * D, steps=steps, seed=seed, device=CPU)
                ]
                for seed in range(first, first + 3)
            ]
            for first in range(3 * layers * self._group.rank, 3 * layers * (self._group.rank + 1), 3)
        ]
        return [[[walk[step] for walk in walks[layer]] for layer in range(layers)] for step in range(steps)]

    def goodput_bits_per_s(self, size: int) -> float:
        """Of one rank sending ``size`` bytes to another at a time, each to its neighbour: raw messages of the group beneath, until all are there."""
        ranks, rank = self._group.world_size, self._group.rank
        ring = self._group.mesh(Plan(ring=ranks)).ring
        message = Message(torch.zeros(size, dtype=torch.uint8), rank ^ 1)
        taken_s = []
        for sender in (0, 1):
            received, sent = ([], [message]) if rank % 2 == sender else ([message], [])
            self.meet()
            began_s = time.perf_counter()
            self.transport.hop(received, sent, ring.process_group).wait()
            self.meet()
            taken_s.append(time.perf_counter() - began_s)
        return 8 * size / max(taken_s)

    def meet(self) -> None:
        """Every rank waits for all others."""
        own = torch.zeros(1, dtype=torch.int64)
        gather_bytes(own.new_empty(self._group.world_size, 1), own, self._group.control)

    def run(self, order: dict[str, Any]) -> dict[str, float]:
        """One trajectory from its first call: its seconds, bytes that this rank sent, seconds that it stood still and that it kept a core busy.

        ``alone_s``: what the transfers of the trajectory take when nothing else is done, from those of its first two calls. ``hideable_s``: of that, what
        there was attention to hide behind.
        """
        plan, layers = Plan.parse(order["plan"]), self._settings["layers"]
        mesh = replace(self._group.mesh(plan), transport=self.transport)
        tokens = self._settings["tokens"] * self._group.world_size
        partition = Partition.equal({"image": tokens}, ring=plan.ring, ulysses=plan.ulysses)
        attend_s = order["attention_share"] * order["compute_s"] / layers
        self._pace(attend_s / (self._settings["tokens"] * tokens * self._settings["heads"]))
        elsewhere_s = (1 - order["attention_share"]) * order["compute_s"] / layers
        contestant = Contestant(order["contestant"], mesh, partition)
        steps = self._steps[: order["steps"]]
        recorded: list[list[Callable[[], None]]] = [[], []]
        self.meet()
        before_bytes, self.transport.waited_s = self.transport.sent_bytes, 0.0
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        for number, step in enumerate(steps):
            self.transport.recorded = recorded[number] if number < len(recorded) else None
            context_of = contestant.call()
            for layer, (q, k, v) in enumerate(step):
                time.sleep(elsewhere_s)
                with running_call(context_of(layer)):
                    attend(q, k, v, self._settings["head_dim"] ** -0.5)
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        sent_bytes, waited_s = self.transport.sent_bytes - before_bytes, self.transport.waited_s
        contestant.finish()
        first_s, later_s = (self._again_s(transfers) for transfers in recorded)
        hops_alone = plan.ulysses == 1 and order["contestant"] != STALE  # which hides its transfers behind a whole call
        beside_s = self._attended_before_the_last_s(plan.ring) / len(steps) if hops_alone else 0.0
        return {
            "trajectory_s": took_s,
            "bytes": sent_bytes,
            "waited_s": waited_s,
            "alone_s": first_s + (len(steps) - 1) * later_s,
            "hideable_s": min(first_s, beside_s) + (len(steps) - 1) * min(later_s, beside_s),
            "cpu_s": cpu_s,
        }

    def _again_s(self, transfers: Sequence[Callable[[], None]]) -> float:
        """The time of some transfers, one after the other. Every rank makes its own."""
        self.transport.recorded = None
        self.meet()
        began_s = time.perf_counter()
        for transfer in transfers:
            transfer()
        self.meet()
        return time.perf_counter() - began_s

    def _attended_before_the_last_s(self, ring: int) -> float:
        """How long attentions to all chunks of a ring but the last took: a hop is under way beside each of them."""
        spans = enumerate(self._timeline.attentions, 1)
        return sum(span.length_s for number, span in spans if number % ring)

    def _pace(self, score_s: float) -> None:
        """Attentions are real, and last as long as those of a network that computes so long elsewhere."""
        inner = choose_provider(CPU, DTYPE, self._settings["head_dim"])
        self._timeline = Timeline()
        paced = PacedAttention(inner, score_s, self._timeline)
        usp.provider_for = lambda *_: paced  # type: ignore[attr-defined]


def _links(transport: Transport, bits_per_s: float | None) -> Transport:
    if bits_per_s is None:
        return transport
    return ThrottledTransport(transport, EmulatedLinks(bytes_per_s=bits_per_s / 8, single_port=True), Timeline())


class Contestant:
    """How the attentions of one trajectory are exchanged: as the product does it, or as a baseline."""

    def __init__(self, name: str, mesh: SequenceMesh, partition: Partition) -> None:
        self._name = name
        self._mesh = mesh
        self._partition = partition
        self._store = ResidualStore(CPU, STORE_BYTES)
        self._travelling: dict[tuple[int, int], Parcel] = {}
        self._calls = itertools.count()

    def call(self) -> ContextOf:
        """The next model call."""
        if self._name == STALE:
            return lambda layer: self._context(StaleExchange(self._mesh, layer, self._travelling))
        if self._name in BASELINES:
            residuals = self._residuals(BASELINES[self._name])
            return lambda layer: self._context(Exchange(self._mesh, RawCodec(), ResidualHops(residuals, layer)))
        context = self._context(Exchange(self._mesh, RawCodec()))
        if self._name != RAW:
            context.residuals = self._residuals(PRESETS[self._name])
        return lambda _: context

    def _context(self, exchange: Exchange) -> CallContext:
        return CallContext(self._partition, exchange)

    def _residuals(self, preset: Preset) -> Any:
        is_first = next(self._calls) == 0
        return self._store.begin_call("trajectory", "branch", preset, largest_bytes=0, is_key=is_first)

    def finish(self) -> None:
        """Nothing is on its way any more; every payload met the bases that it was made for."""
        for parcel in self._travelling.values():
            parcel.open_parts()
        seen = self._store.look("trajectory")
        if seen.mismatches or seen.broken:
            raise InternalError(f"The bases of the ranks differ: {seen}.")


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    group = WorkerGroup.start(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        init_method=f"file://{folder / 'store'}",
        device=CPU,
    )
    with torch.no_grad():
        runner = Runner(group, settings)
        for line in sys.stdin:
            order = json.loads(line)
            if order["contestant"] == GOODPUT:
                answer = {"bits_per_s": runner.goodput_bits_per_s(order["bytes"])}
            else:
                answer = runner.run(order)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
