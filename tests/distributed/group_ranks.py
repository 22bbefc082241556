"""What each rank runs for test_group: every primitive of the group once, results handed back."""

from __future__ import annotations

import torch
from torch import Tensor
from tutti.backend.errors import BadPlan, InternalError
from tutti.backend.parallel.exchange import Exchange, RawCodec
from tutti.backend.parallel.group import CONTROL_WORDS
from tutti.backend.parallel.hooks import gather_stream
from tutti.backend.parallel.partition import Partition, StreamSplit
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.usp import CallContext, attend, running_call

from tests.support.ranks import Rank, this_rank

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool)
HEADS, HEAD_DIM, BATCH = 4, 16, 2


def qkv(length: int) -> list[Tensor]:
    """The whole sequence of an attention, the same on every rank."""
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(BATCH, length, HEADS, HEAD_DIM, generator=generator) for _ in range(3)]


def broadcasts(rank: Rank) -> None:
    for dtype in DTYPES:
        for src in range(rank.world_size):
            tensor = torch.full(
                (3, 5), rank.rank % 2 if dtype is torch.bool else rank.rank + 1, device=rank.group.device
            ).to(dtype)
            rank.group.broadcast(tensor, src)
            rank.tensors[f"broadcast {dtype} {src}"] = tensor.float()
    scalar = torch.tensor(rank.rank, device=rank.group.device)
    rank.group.broadcast(scalar, rank.world_size - 1)
    rank.facts["broadcast scalar"] = scalar.item()


def control(rank: Rank) -> None:
    rank.tensors["control"] = rank.group.exchange_control(torch.arange(CONTROL_WORDS) + 1000 * rank.rank)()
    refused = []
    for wrong in (
        torch.zeros(CONTROL_WORDS - 1, dtype=torch.int64),
        torch.zeros(CONTROL_WORDS, dtype=torch.int32),
        torch.zeros(1, CONTROL_WORDS, dtype=torch.int64),
    ):
        try:
            rank.group.exchange_control(wrong)
        except InternalError as error:
            refused.append(str(error))
    rank.facts["refused control vectors"] = refused


def attentions(rank: Rank) -> None:
    """Attention over explicit, uneven shares, for every plan of the group."""
    for case in rank.arguments["shares"]:
        plan, shares = Plan.parse(case["plan"]), case["shares"]
        mesh = rank.group.mesh(plan)
        split = StreamSplit.explicit(shares)
        partition = Partition(ring=plan.ring, ulysses=plan.ulysses, streams={"image": split})
        q, k, v = (split.shard(x, 1, rank.rank).to(rank.group.device) for x in qkv(sum(shares)))
        with running_call(CallContext(partition, Exchange(mesh, RawCodec()))):
            own = attend(q, k, v, 0.3)
        rank.tensors[case["name"]] = gather_stream(own.flatten(2), split, mesh)


def refusals(rank: Rank) -> None:
    try:
        rank.group.mesh(Plan(ring=rank.world_size + 1))
    except BadPlan as error:
        rank.facts["refused mesh"] = str(error)


def main() -> None:
    rank = this_rank()
    rank.facts["transport"] = rank.group.transport.name
    broadcasts(rank)
    control(rank)
    attentions(rank)
    refusals(rank)
    rank.finish()


if __name__ == "__main__":
    main()
