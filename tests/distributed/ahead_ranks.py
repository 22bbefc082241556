"""What each rank runs for test_ahead: a compressed trajectory with parcels opened ahead and in place, what was decoded during an attention, and a rank that goes."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from tutti.backend.compression.channel import Channel
from tutti.backend.compression.policy import Preset
from tutti.backend.compression.state import StateForm
from tutti.backend.compression.store import ResidualCall
from tutti.backend.parallel import usp
from tutti.backend.parallel.exchange import Exchange, Move, Parcel
from tutti.backend.parallel.providers import Attended, AttentionProvider
from tutti.backend.parallel.residual import ResidualHops
from tutti.backend.parallel.transport import count_open_hops
from tutti.kernels.base_hash import hash_of

from tests.distributed.residual_ranks import Runner, trajectory
from tests.support.gated_ring import InPlace
from tests.support.ranks import Rank, this_rank

KINDS = {"ahead": ResidualHops, "in place": InPlace}
PRESET = Preset(name="test", key="key-int8", residual="binary")
PLENTY = 2**30


parcels: list[Parcel] = []
"""What has come in along the ring since the list was emptied."""


class Recording(Runner):
    """Remembers what a step's compressed attentions gave, bit for bit, and what they left unopened."""

    given = received = unopened = 0

    def attend(self, layers: list[list[Tensor]], residuals: ResidualCall | None) -> list[Tensor]:
        parcels.clear()
        out = super().attend(layers, residuals)
        if residuals is not None:
            self.given = int(hash_of([x.contiguous() for x in out]))
            self.received, self.unopened = len(parcels), sum(parcel.pending is not None for parcel in parcels)
        return out


class Decodes:
    """How many payloads this rank has decoded so far, and in which threads."""

    def __init__(self) -> None:
        self.count, self.threads = 0, set[str]()
        self._changed = threading.Condition()
        decode = Channel.decode

        def counted(channel: Channel, *arguments: Any) -> list[Tensor]:
            values = decode(channel, *arguments)
            with self._changed:
                self.count += 1
                self.threads.add("main" if threading.current_thread() is threading.main_thread() else "another")
                self._changed.notify_all()
            return values

        Channel.decode = counted  # type: ignore[method-assign]

    def reach(self, count: int, deadline_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.count >= count, deadline_s)


class BusyAttention:
    """An attention that is not over before the next chunk is decoded; or gives up when nobody does that beside it."""

    def __init__(self, inner: AttentionProvider, decodes: Decodes, *, ring: int, deadline_s: float) -> None:
        self._inner, self._decodes, self._deadline_s = inner, decodes, deadline_s
        self._after = [decodes.count + 1 + chunk for chunk in range(ring - 1)]
        self.saw: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        if self._after:  # the last chunk has none behind it
            self.saw.append(self._decodes.reach(self._after.pop(0), self._deadline_s))
        return self._inner(q, k, v, scale)


def compare(rank: Rank) -> None:
    """Steps of one trajectory in both ways."""
    hop = Exchange.hop

    def remembered(exchange: Exchange, moves: Sequence[Move]) -> list[Parcel]:
        coming = hop(exchange, moves)
        parcels.extend(coming)
        return coming

    Exchange.hop = remembered  # type: ignore[method-assign]
    for plan in rank.arguments["plans"]:
        for kind, hops in KINDS.items():
            usp.ResidualHops = hops  # type: ignore[misc]
            runner = Recording(rank, plan, StateForm(**rank.arguments["form"]), PLENTY)
            walk, steps = trajectory(sum(runner.shares), 0), []
            for step in range(rank.arguments["steps"]):
                residual = ("binary", "int4", "low-rank")[step % 3]
                facts = runner.step("t", step, residual, next(walk))
                steps.append(facts | {"given": runner.given, "received": runner.received, "unopened": runner.unopened})
            rank.facts[f"{plan}, {kind}"] = steps


def look_beside(rank: Rank) -> None:
    """What happens during attentions, in both ways."""
    decodes, provider_for = Decodes(), usp.provider_for
    for kind, hops in KINDS.items():
        usp.ResidualHops = hops  # type: ignore[misc]
        runner, busy = Runner(rank, f"ring={rank.world_size}", StateForm(), PLENTY), []
        walk = trajectory(sum(runner.shares), 0)

        def provider(*arguments: Any, kind: str = kind, busy: list[BusyAttention] = busy) -> AttentionProvider:
            deadline_s = rank.arguments["deadlines_s"][kind]
            inner = provider_for(*arguments)
            busy.append(BusyAttention(inner, decodes, ring=rank.world_size, deadline_s=deadline_s))
            return busy[-1]

        decodes.threads.clear()
        usp.provider_for = provider
        for _ in range(2):
            runner.attend(next(walk), runner.store.begin_call("t", 0, PRESET, largest_bytes=0))
        usp.provider_for = provider_for
        rank.facts[kind] = {"saw": [saw for one in busy for saw in one.saw], "threads": sorted(decodes.threads)}


def lose_one(rank: Rank) -> None:
    """Rank 1 goes in its first attention, with a hop under way and one to come that never will."""
    runner = Runner(rank, f"ring={rank.world_size}", StateForm(), PLENTY)
    call = runner.store.begin_call("t", 0, PRESET, largest_bytes=0)
    if rank.rank == 1:
        provider_for = usp.provider_for
        usp.provider_for = lambda *arguments: FailingAttention(provider_for(*arguments))
    try:
        runner.attend(next(trajectory(sum(runner.shares), 0)), call)
    except RuntimeError as error:
        rank.facts["failure"] = str(error)
    rank.facts["open hops"] = count_open_hops(rank.group.transport)
    rank.group = SimpleNamespace(close=lambda: None)  # type: ignore[assignment]  # it would wait for the others
    rank.finish()
    os._exit(0)


class FailingAttention(BusyAttention):
    """Fails."""

    def __init__(self, inner: AttentionProvider) -> None:
        self._inner = inner

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        raise RuntimeError("this rank fails in the middle of a call")


def main() -> None:
    rank = this_rank()
    with torch.no_grad():
        {"compare": compare, "look beside": look_beside, "lose one": lose_one}[rank.arguments["what"]](rank)
    rank.finish()


if __name__ == "__main__":
    main()
