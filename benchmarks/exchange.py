"""What does an 8-bit codec spare an attention's two all-to-alls on a slow link, and what does it lose?

Two ranks on the CPU, bf16, head_dim 128: q, k and v go out, the output comes back, as in every Ulysses attention. The link is a stand-in: gloo on
the loopback, and then a sleep until latency + bytes / bandwidth have passed. Encoding and decoding are charged in full, and shown apart: on a CPU
they are the torch references, so the link is slow enough that they do not decide. Every round exchanges once with each codec; a ratio is the
median of the rounds' ratios.

    python -m tutti.benchmarks.exchange [--json FILE] [--check] [--rounds N] [--mbps M] [--tokens N]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..backend.errors import InternalError
from ..backend.parallel.plan import CODECS
from .report import Figure, Spread, argument_parser, finish

BENCHMARK: Final = "exchange"
RANKS: Final = 2
RAW: Final = CODECS[0]
TIMEOUT_S: Final = 600


def run_ranks(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank measured: codec -> ``exchange_s``, ``transfer_s`` (one number a round), ``bytes``, ``rms``."""
    with tempfile.TemporaryDirectory(prefix="tutti-exchange-") as name:
        folder = Path(name)
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        command = [sys.executable, "-m", f"{__package__}.exchange_rank", name]
        environment = {**os.environ, "WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        ranks = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(RANKS)]
        try:
            codes = [rank.wait(TIMEOUT_S) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        if any(codes):
            raise InternalError(f"A rank of the benchmark failed: exit codes {codes}.")
        return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]


def slowest(ranks: Sequence[dict[str, Any]], codec: str, what: str) -> list[float]:
    """Of the ranks, in each round."""
    return [max(times) for times in zip(*(rank[codec][what] for rank in ranks), strict=True)]


def figures_of(ranks: Sequence[dict[str, Any]]) -> list[Figure]:
    """Times and bytes of every codec, and what is promised of them."""
    figures = []
    raw = slowest(ranks, RAW, "exchange_s")
    for codec in CODECS:
        whole = slowest(ranks, codec, "exchange_s")
        coding = [a - b for a, b in zip(whole, slowest(ranks, codec, "transfer_s"), strict=True)]
        for metric, samples in (("both all-to-alls", whole), ("of it encode and decode", coding)):
            spread = Spread.of([1000 * seconds for seconds in samples])
            figures.append(Figure(case=codec, metric=metric, spread=spread, unit="ms"))
        sent = ranks[0][codec]["bytes"]
        figures.append(Figure.one(case=codec, metric="bytes sent by a rank", value=sent, unit="bytes"))
        if codec == RAW:
            continue
        ratio, faster = sent / ranks[0][RAW]["bytes"], [a / b for a, b in zip(raw, whole, strict=True)]
        figures.append(Figure.one(case=codec, metric="bytes / raw", value=ratio, unit="x", baseline=RAW))
        figures.append(Figure(case=codec, metric="raw time / time", spread=Spread.of(faster), unit="x", baseline=RAW))
        worst = max(rank[codec]["rms"] for rank in ranks)
        figures.append(Figure.one(case=codec, metric="relative rms error, worst tensor", value=worst, unit=""))
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds (default: 11)")
    parser.add_argument("--mbps", type=float, default=10.0, help="the link, in Mbit/s (default: 10)")
    parser.add_argument("--latency-ms", type=float, default=0.2, help="of one all-to-all (default: 0.2)")
    parser.add_argument("--tokens", type=int, default=64, help="of each rank (default: 64)")
    parser.add_argument("--heads", type=int, default=8, help="an even number (default: 8)")
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("rounds", "mbps", "latency_ms", "tokens", "heads")}
    print(f"modelled link: {options.mbps:g} Mbit/s, {options.latency_ms:g} ms; encode and decode: measured on this CPU")
    return finish(BENCHMARK, figures_of(run_ranks(settings)), options)


if __name__ == "__main__":
    sys.exit(main())
