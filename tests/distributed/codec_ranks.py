"""What each rank runs for test_codecs: the Ulysses exchange there and back, on ranks whose numbers are a thousand times larger or smaller."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tutti.backend.parallel.codecs import codec_of
from tutti.backend.parallel.exchange import Exchange, HeadCodec, RawCodec
from tutti.backend.parallel.partition import Partition, StreamSplit
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.ulysses import gather_heads, scatter_heads
from tutti.backend.parallel.usp import CallContext, attend, running_call

from tests.support.ranks import Rank, this_rank

BATCH, HEADS, HEAD_DIM = 2, 4, 21


def whole(shares: Sequence[int], ratio: float, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v of all ranks' tokens, the same on every rank. The greatest number of rank i's is ``4 * ratio**i``."""
    generator = torch.Generator().manual_seed(sum(shares))
    tensors = []
    for _ in range(3):
        own = [torch.randn(BATCH, held, HEADS, HEAD_DIM, generator=generator) for held in shares]
        scaled = [x * (4 * ratio**rank / x.abs().max()) if x.numel() else x for rank, x in enumerate(own)]
        tensors.append(torch.cat(scaled, 1).to(dtype))
    return tensors


class OwnScaleCodec(RawCodec):
    """FastUSP's exchange, the fault that the check must find: one scale for a tensor, and everybody takes their own to dequantise."""

    name = "own scale"
    exact = False

    def pack(self, tensors: Sequence[Tensor], parts: int) -> Tensor:
        self._scale = max([4.0, *(float(x.float().abs().max()) for x in tensors if x.numel())]) / 448
        scaled = [(x.float() / self._scale).to(torch.float8_e4m3fn).view(torch.uint8) for x in tensors]
        return super().pack(scaled, parts)

    def unpack(self, packed: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        arrived = super().unpack(packed, like)
        return tuple((x.view(torch.float8_e4m3fn).float() * self._scale).to(like[0].dtype) for x in arrived)


def exchanges(rank: Rank, name: str, plan: Plan, case: dict[str, object], codec: HeadCodec) -> None:
    """The tensors of this rank's heads, and its tokens of them sent back."""
    shares, ratio = list(case["shares"]), float(str(case["ratio"]))  # type: ignore[call-overload]
    dtype = getattr(torch, str(case["dtype"]))
    mesh, split = rank.group.mesh(plan), StreamSplit.explicit(shares)
    exchange = Exchange(mesh, codec)
    before = mesh.transport.sent_bytes
    own = [split.shard(x, 1, rank.rank) for x in whole(shares, ratio, dtype)]
    arrived = scatter_heads(*own, shares, exchange)
    for what, x in zip("qkv", arrived, strict=True):
        rank.tensors[f"{name} {what}"] = x
    rank.tensors[f"{name} out"] = gather_heads(arrived[0], shares, rank.rank, exchange)
    rank.facts[f"{name} bytes"] = mesh.transport.sent_bytes - before


def attentions(rank: Rank, name: str, plan: Plan, shares: Sequence[int]) -> None:
    mesh, split = rank.group.mesh(plan), StreamSplit.explicit(shares)
    partition = Partition(ring=plan.ring, ulysses=plan.ulysses, streams={"image": split})
    own = [split.shard(x, 1, rank.rank) for x in whole(shares, 1.0, torch.float32)]
    with running_call(CallContext(partition, Exchange(mesh, codec_of(plan, mesh.device)))):
        rank.tensors[f"{name} attended"] = attend(*own, 0.3)


def main() -> None:
    rank = this_rank()
    for name, case in rank.arguments["exchanges"].items():
        plan = Plan.parse(case["plan"])
        codec = OwnScaleCodec() if case.get("fault") else codec_of(plan, rank.group.device)
        exchanges(rank, name, plan, case, codec)
    for name, case in rank.arguments["attentions"].items():
        attentions(rank, name, Plan.parse(case["plan"]), case["shares"])
    rank.finish()


if __name__ == "__main__":
    main()
