"""What each rank runs for test_ring_timeline: ring loops on emulated links, with the times of transfers and attentions."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from tutti.backend.parallel.exchange import Exchange, RawCodec
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.providers import CpuFlash
from tutti.backend.parallel.schedules import attend_along_ring
from tutti.backend.parallel.schedules.call import RingCall
from tutti.backend.parallel.transport import gather_bytes
from tutti.benchmarks.emulated_links import EmulatedLinks, SerialTransport, ThrottledTransport
from tutti.benchmarks.timeline import PacedAttention, Timeline

from tests.support.attention_cases import SCALE, AttentionCase
from tests.support.ranks import this_rank


def main() -> None:
    rank = this_rank()
    case = AttentionCase(**rank.arguments["case"])
    for entry in rank.arguments["loops"]:
        plan = Plan.parse(entry["plan"])
        mesh = rank.group.mesh(plan)
        partition = case.partition(plan)
        q, k, v = case.held(plan, rank.rank)
        links = EmulatedLinks(bytes_per_s=2 * k.nbytes / entry["hop_s"])
        timeline = Timeline()
        kind = SerialTransport if entry["serial"] else ThrottledTransport
        call = RingCall(
            q=q, k=k, v=v, scale=SCALE, partition=partition,
            exchange=Exchange(replace(mesh, transport=kind(mesh.transport, links, timeline)), RawCodec()),
            provider=PacedAttention(CpuFlash(), entry["attend_s"] / (q.shape[1] * k.shape[1] * q.shape[2]), timeline),
        )  # fmt: skip
        start = torch.zeros(1, dtype=torch.int64)
        gather_bytes(start.new_empty(rank.world_size, 1), start, rank.group.control)  # start together
        rank.tensors[entry["name"]] = attend_along_ring(call)
        rank.facts[entry["name"]] = {
            "transfers": [asdict(timeline.transfers[index]) for index in sorted(timeline.transfers)],
            "attentions": [asdict(span) for span in timeline.attentions],
        }
    rank.finish()


if __name__ == "__main__":
    main()
