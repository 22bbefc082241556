"""What each rank runs for test_auto_ranks: two branches of a trajectory whose layers change by different amounts, under ``compression=auto``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tutti.backend.parallel.codecs import codec_of
from tutti.backend.parallel.exchange import Exchange
from tutti.backend.parallel.partition import Partition, StreamSplit
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.usp import CallContext, attend, running_call
from tutti.backend.worker.control import Action, CallGate
from tutti.backend.worker.residuals import Residuals, open_store

from tests.distributed.residual_ranks import BATCH, HEAD_DIM, HEADS, rms_error
from tests.support.ranks import Rank, this_rank

BRANCHES = ("cond", "uncond")
TRAJECTORY, KIND = "t", "kind"


def walk(tokens: int, motions: Sequence[Sequence[float]], seed: int) -> Iterator[Tensor]:
    """q, k, v ``[layers, 3, B, N, H, D]`` call by call. ``motions``: by how much of its size each layer moves, for each call."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(len(motions[0]), 3, BATCH, tokens, HEADS, HEAD_DIM, generator=generator)

    value = draw()
    for by_layer in motions:
        motion = torch.tensor(by_layer).view(-1, 1, 1, 1, 1, 1)
        value = (
            1 - motion**2
        ).sqrt() * value + motion * draw()  # no larger and no smaller, or the relative motion would fade
        yield value.bfloat16()


class Runner:
    """One plan on one rank."""

    def __init__(self, rank: Rank, text: str, shares: Sequence[int]) -> None:
        self.rank = rank
        self.plan = Plan.parse(f"{text},compression=auto")
        self.mesh = rank.group.mesh(self.plan)
        self.store = open_store(rank.group, 1)
        self.residuals = Residuals(self.store)
        # Known to pay: here it would not, and what is looked at is what happens then.
        self.residuals._trials.of((KIND, self.plan.split)).pays = True
        self.split = StreamSplit.explicit(list(shares))
        self.partition = Partition(ring=self.plan.ring, ulysses=self.plan.ulysses, streams={"image": self.split})

    def call(self, number: int, branch: str, layers: Tensor, compares: bool) -> dict[str, object]:
        """One model call; what it looked like. ``compares``: beside what it is when it travels as it is."""
        own = self.residuals.of(self.plan, TRAJECTORY)
        assert own is not None
        told = own.news()
        gate = CallGate(
            exchange=self.rank.group.exchange_control,
            asks=lambda: Action.CONTINUE,
            wait_for_device=lambda: None,
            sequence=1,
            call=number,
            tells=lambda: told,
        )
        gate.enter()
        call = own.of_call(branch, gate.residuals, KIND)
        assert call is not None
        exchange = Exchange(self.mesh, codec_of(self.plan, self.mesh.device))
        found = []
        for residuals in (call, None)[: 1 + compares]:
            with running_call(CallContext(self.partition, exchange, residuals=residuals)):
                found.append(
                    [attend(*(self.split.shard(x, 1, self.mesh.rank) for x in layer), 0.2) for layer in layers]
                )
        return {
            "branch": branch,
            "key": gate.residuals.wants_key,
            "own_ppm": told.errors_ppm[: len(layers)],
            "measured_ppm": gate.residuals.errors_ppm[: len(layers)],
            "codecs": [call._preset.residual_of(group) for group in range(len(layers))],
            "hashes": self._hashes(),
            "error": max(rms_error(ours, exact) for ours, exact in zip(*found, strict=True)) if compares else None,
            "lines": own.lines,
        }

    def _hashes(self) -> dict[str, int]:
        """By names that are the same on every rank that has the channel."""
        found = {}
        for ((_, branch), (_, (layer, kind, *ends))), value in self.store.hashes(TRAJECTORY).items():
            line = self.mesh.ulysses.index if kind == "ring" else self.mesh.ring.index
            found[f"{branch} {layer} {kind} {line} {ends}"] = value
        return found


def main() -> None:
    rank = this_rank()
    for text, settings in rank.arguments["cases"].items():
        runner = Runner(rank, text, settings["shares"])
        walks = {
            branch: walk(sum(settings["shares"]), settings["motions"], seed) for seed, branch in enumerate(BRANCHES)
        }
        side_by_side, calls = runner.mesh.cfg.size > 1, []
        for step in range(len(settings["motions"])):
            compares = step in settings["compared"]
            for index, branch in enumerate(BRANCHES):
                layers = next(walks[branch])
                if not side_by_side:
                    calls.append(runner.call(len(BRANCHES) * step + index, branch, layers, compares))
                elif index == runner.mesh.cfg.index:
                    calls.append(runner.call(step, branch, layers, compares))
        rank.facts[text] = calls
    rank.finish()


if __name__ == "__main__":
    main()
