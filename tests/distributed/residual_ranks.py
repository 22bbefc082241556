"""What each rank runs for test_residuals: attentions of a moving trajectory over the compressed exchange, and what every base hashes to after each step."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor
from tutti.backend.compression.policy import Preset
from tutti.backend.compression.state import StateForm
from tutti.backend.compression.store import ResidualCall, ResidualStore
from tutti.backend.parallel.codecs import codec_of
from tutti.backend.parallel.exchange import Exchange
from tutti.backend.parallel.mesh import SequenceMesh
from tutti.backend.parallel.partition import Partition, StreamSplit
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.usp import CallContext, attend, running_call
from tutti.backend.worker.control import Action, CallGate, ResidualNews

from tests.support.ranks import Rank, this_rank

BATCH, HEADS, HEAD_DIM, LAYERS = 1, 4, 32, 2
RESIDUALS = ("binary", "ternary", "quaternary", "int4", "int8", "fp8", "low-rank")


def trajectory(tokens: int, seed: int) -> Iterator[list[list[Tensor]]]:
    """q, k, v of every layer, step by step, of all ranks: they move by a fifth of their size, partly in the direction they moved before."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(LAYERS, 3, BATCH, tokens, HEADS, HEAD_DIM, generator=generator)

    value, motion = draw(), draw()
    while True:
        yield [list(layer) for layer in value.bfloat16()]
        motion = 0.8 * motion + 0.6 * draw()
        value = value + 0.2 * motion


def rms_error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.float() - exact.float()).norm() / exact.float().norm()) if exact.numel() else 0.0


class Runner:
    """One plan on one rank."""

    def __init__(self, rank: Rank, text: str, form: StateForm, limit_bytes: int) -> None:
        self.rank = rank
        self.plan = Plan.parse(text)
        self.mesh: SequenceMesh = rank.group.mesh(self.plan)
        self.form = form
        self.store = ResidualStore(rank.group.device, limit_bytes)
        self.shares = rank.arguments["shares"]
        self.split = StreamSplit.explicit(self.shares)
        partition = Partition(ring=self.plan.ring, ulysses=self.plan.ulysses, streams={"image": self.split})
        self.partition = partition

    def step(self, name: str, step: int, residual: str, layers: list[list[Tensor]]) -> dict[str, object]:
        """One model call of a trajectory; what it looked like."""

        def news() -> ResidualNews:
            seen = self.store.look(name)
            facts.update(mismatches=seen.mismatches, broken=seen.broken)
            return ResidualNews(
                wants_key=bool(seen.mismatches or seen.broken),
                is_broken=bool(seen.broken),
                evictions=self.store.evictions,
                state_bytes=self.store.last_bytes,
            )

        facts: dict[str, object] = {}
        gate = CallGate(
            exchange=self.rank.group.exchange_control,
            asks=lambda: Action.CONTINUE,
            wait_for_device=lambda: None,
            sequence=1,
            call=step,
            tells=news,
        )
        gate.enter()
        preset = Preset(name="test", key="key-int8", residual=residual, form=self.form)
        agreed = gate.residuals
        call = self.store.begin_call(
            name,
            "branch",
            preset,
            largest_bytes=agreed.state_bytes,
            is_key=agreed.wants_key,
            is_broken=agreed.is_broken,
        )
        before = self.mesh.transport.sent_bytes
        out = self.attend(layers, call)
        sent_bytes = self.mesh.transport.sent_bytes - before
        exact_out = self.attend(layers, None)
        facts.update(
            bytes=sent_bytes,
            key=agreed.wants_key,
            compressed=call is not None,
            note=self.store.note_of(name),
            bad_numbers=sum(int((~x.isfinite()).sum()) for x in out),
            evictions=self.store.evictions,
            state_bytes=self.store.bytes_of(name),
            hashes=self._hashes(name),
            error=max(rms_error(ours, exact) for ours, exact in zip(out, exact_out, strict=True)),
            lost_bad_numbers=sum(
                int((exact.isnan() & ours.isfinite()).sum()) for ours, exact in zip(out, exact_out, strict=True)
            ),
        )
        return facts

    def attend(self, layers: list[list[Tensor]], residuals: ResidualCall | None) -> list[Tensor]:
        exchange = Exchange(self.mesh, codec_of(self.plan, self.mesh.device))
        with running_call(CallContext(self.partition, exchange, residuals=residuals)):
            return [attend(*(self.split.shard(x, 1, self.rank.rank) for x in layer), 0.2) for layer in layers]

    def _hashes(self, name: str) -> dict[str, int]:
        """By names that are the same on every rank that has the channel."""
        found = {}
        for (_, (_, (layer, kind, *ends))), value in self.store.hashes(name).items():
            line = self.mesh.ulysses.index if kind == "ring" else self.mesh.ring.index
            found[f"{layer} {kind} {line} {ends}"] = value
        return found

    def corrupt(self, name: str) -> None:
        """One bit of one base goes bad, of a channel that has another end."""
        channels = self.store._kept[name].branches["branch"]
        channel = next(
            channel for (_, (_, kind, *ends)), channel in channels.items() if kind == "ring" or ends[0] != ends[1]
        )
        channel.states[0].kept[0].view(-1).view(torch.uint8)[3] ^= 4


def spoil(layers: list[list[Tensor]], shares: list[int], which: str) -> None:
    """One number of the first layer's first head is NaN: of rank 1's first key or query."""
    layers[0]["qk".index(which)][0, shares[0], 0, 3] = torch.nan


def main() -> None:
    rank = this_rank()
    for case, settings in rank.arguments["cases"].items():
        runner = Runner(rank, settings.get("plan", case), StateForm(**settings["form"]), settings["limit_bytes"])
        names = settings["trajectories"]
        walks = {name: trajectory(sum(runner.shares), seed) for seed, name in enumerate(names)}
        chosen, steps = random.Random(1), []
        for step in range(settings["steps"]):
            name = names[step // settings["turns"] % len(names)]
            residual = settings["residual"] or chosen.choice(RESIDUALS)
            if step == settings.get("corrupt_at") and rank.rank == settings["corrupt_on"]:
                runner.corrupt(name)
            layers = next(walks[name])
            if step in settings["bad_at"]:
                spoil(layers, runner.shares, settings["bad"])
            steps.append({"name": name, **runner.step(name, step, residual, layers)})
        rank.facts[case] = steps
    rank.finish()


if __name__ == "__main__":
    main()
