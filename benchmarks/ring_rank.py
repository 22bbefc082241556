"""One of the four ranks of the ring benchmark: runs one ring loop per line of standard input, ``setting/contestant``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..backend.parallel.exchange import Exchange, RawCodec
from ..backend.parallel.group import WorkerGroup
from ..backend.parallel.partition import Partition
from ..backend.parallel.plan import Plan
from ..backend.parallel.providers import choose_provider
from ..backend.parallel.schedules import attend_along_ring
from ..backend.parallel.schedules.call import RingCall
from ..backend.parallel.transport import gather_bytes
from ..backend.planning.schedules import Topology
from .emulated_links import EmulatedLinks, SerialTransport, ThrottledTransport
from .ring import COMPUTE, HEAD_DIM, HEADS, RANKS, SERIAL, SETTINGS, TOKENS
from .timeline import PacedAttention, Timeline

CPU = torch.device("cpu")
SCALE = HEAD_DIM**-0.5


def main() -> None:
    torch.set_num_threads(1)
    group = WorkerGroup.start(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        init_method=f"file://{Path(sys.argv[1]) / 'store'}",
        device=CPU,
    )
    meeting = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        for line in sys.stdin:
            setting, _, contestant = line.strip().partition("/")
            loop = loop_of(group, setting, contestant)
            gather_bytes(meeting.new_empty(RANKS, 1), meeting, group.control)  # start together
            start_s = time.perf_counter()
            loop()
            print(time.perf_counter() - start_s, flush=True)


def loop_of(group: WorkerGroup, setting: str, contestant: str) -> Callable[[], object]:
    """One attention of all ranks; ``COMPUTE``: this rank's attentions to every chunk, and no transfer."""
    chosen, timeline = SETTINGS[setting], Timeline()
    provider = PacedAttention(
        choose_provider(CPU, torch.float32, HEAD_DIM), chosen.attend_s / (TOKENS * TOKENS * HEADS), timeline
    )
    generator = torch.Generator().manual_seed(group.rank)
    q, k, v = (torch.randn(1, TOKENS, HEADS, HEAD_DIM, generator=generator) for _ in range(3))
    if contestant == COMPUTE:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return lambda: [provider(q, k, v, SCALE) for _ in range(RANKS)]
    serial = contestant == SERIAL
    mesh = group.mesh(Plan(ring=RANKS, schedule="ring" if serial else contestant))
    links = EmulatedLinks(bytes_per_s=chosen.links.bytes_per_s, single_port=chosen.topology is Topology.SINGLE_PORT)
    transport = (SerialTransport if serial else ThrottledTransport)(mesh.transport, links, timeline)
    call = RingCall(
        q=q,
        k=k,
        v=v,
        scale=SCALE,
        partition=Partition.equal({"image": RANKS * TOKENS}, ring=RANKS, ulysses=1),
        exchange=Exchange(replace(mesh, transport=transport), RawCodec()),
        provider=provider,
    )
    return lambda: attend_along_ring(call)


if __name__ == "__main__":
    main()
