"""One of the two ranks of the exchange benchmark: both all-to-alls of an attention with every codec, over a link that is made slow."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backend.parallel.codecs import codec_of
from ..backend.parallel.exchange import Exchange
from ..backend.parallel.group import WorkerGroup
from ..backend.parallel.mesh import SequenceMesh
from ..backend.parallel.plan import CODECS, Plan
from ..backend.parallel.transport import gather_bytes
from ..backend.parallel.ulysses import gather_heads, scatter_heads
from .emulated_links import EmulatedLinks, ThrottledTransport
from .timeline import Timeline

HEAD_DIM = 128
WARM_UP_ROUNDS = 2


def tensors_of(rank: int, tokens: int, heads: int) -> list[Tensor]:
    """q, k, v and the output of one rank, bf16 ``[1, n, H, D]``; heads differ in size, as they do in a network."""
    generator = torch.Generator().manual_seed(rank)
    shape = (1, tokens, heads, HEAD_DIM)
    sizes = 2.0 ** torch.randint(-3, 4, (1, 1, heads, 1), generator=generator)
    return [(torch.randn(shape, generator=generator) * sizes).bfloat16() for _ in range(4)]


def relative_rms(got: Tensor, expected: Tensor) -> float:
    """``|got - expected| / |expected|``, both as one vector."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def exchanged(
    exchange: Exchange, own: Sequence[Tensor], out_BShD: Tensor, held: Sequence[int], place: int
) -> list[Tensor]:
    """What arrives of q, k, v, and of the output sent back."""
    return [*scatter_heads(own[0], own[1], own[2], held, exchange), gather_heads(out_BShD, held, place, exchange)]


def measure(mesh: SequenceMesh, timeline: Timeline, settings: dict[str, Any], synchronise: Any) -> dict[str, Any]:
    """Codec -> figures; see :func:`.exchange.run_ranks`."""
    ranks, place, transport = mesh.ulysses.size, mesh.ulysses.index, mesh.transport
    everyone = [tensors_of(rank, settings["tokens"], settings["heads"]) for rank in range(ranks)]
    own, held, h = everyone[place], [settings["tokens"]] * ranks, settings["heads"] // ranks
    whole = [torch.cat([tensors[i] for tensors in everyone], 1)[:, :, place * h : (place + 1) * h] for i in range(4)]
    expected = [*whole[:3], own[3]]
    exchanges = {codec: Exchange(mesh, codec_of(Plan(ulysses=ranks, codec=codec), mesh.device)) for codec in CODECS}
    figures: dict[str, Any] = {codec: {"exchange_s": [], "transfer_s": []} for codec in CODECS}
    for number in range(WARM_UP_ROUNDS + settings["rounds"]):
        for codec, exchange in exchanges.items():
            synchronise()
            timeline.transfers.clear()
            before_bytes, start_s = transport.sent_bytes, time.perf_counter()
            got = exchanged(exchange, own, whole[3], held, place)
            took_s = time.perf_counter() - start_s
            if number < WARM_UP_ROUNDS:
                worst = max(relative_rms(a, b) for a, b in zip(got, expected, strict=True))
                figures[codec].update(bytes=transport.sent_bytes - before_bytes, rms=worst)
                continue
            figures[codec]["exchange_s"].append(took_s)
            figures[codec]["transfer_s"].append(sum(span.length_s for span in timeline.transfers.values()))
    return figures


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    group = WorkerGroup.start(
        rank=rank, world_size=world_size, init_method=f"file://{folder / 'store'}", device=torch.device("cpu")
    )
    links = EmulatedLinks(bytes_per_s=settings["mbps"] * 1e6 / 8, latency_s=settings["latency_ms"] / 1000)
    mesh, timeline = group.mesh(Plan(ulysses=world_size)), Timeline()
    mesh = dataclasses.replace(mesh, transport=ThrottledTransport(mesh.transport, links, timeline))
    meeting = torch.zeros(1, dtype=torch.int64)

    def synchronise() -> None:
        gather_bytes(meeting.new_empty(world_size, 1), meeting, group.control)

    with torch.no_grad():
        figures = measure(mesh, timeline, settings, synchronise)
    (folder / f"{rank}.json").write_text(json.dumps(figures), encoding="utf-8")
    group.close()


if __name__ == "__main__":
    main()
