"""What each rank runs for test_schedules: attentions by every schedule, with the calls and bytes that they took."""

from __future__ import annotations

from dataclasses import replace

import torch
from tutti.backend.parallel.exchange import Exchange, RawCodec
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.usp import CallContext, attend, running_call

from tests.support.attention_cases import SCALE, AttentionCase
from tests.support.ranks import this_rank
from tests.support.transports import WatchedTransport


def main() -> None:
    rank = this_rank()
    for entry in rank.arguments["cases"]:
        plan, case = Plan.parse(entry["plan"]), AttentionCase(**entry["case"])
        mesh = rank.group.mesh(plan)
        watched = WatchedTransport(mesh.transport, entry["lost"])
        partition = case.partition(plan)
        q, k, v = (x.to(rank.group.device) for x in case.held(plan, rank.rank))
        context = CallContext(partition, Exchange(replace(mesh, transport=watched), RawCodec()))
        with torch.inference_mode(entry["inference"]), running_call(context):
            out = attend(q, k, v, SCALE, case.seen)
        rank.tensors[entry["name"]] = out
        rank.facts[entry["name"]] = {"calls": watched.calls, "bytes": watched.bytes}
    rank.finish()


if __name__ == "__main__":
    main()
