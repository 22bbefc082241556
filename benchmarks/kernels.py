"""How near to the speed of memory do the kernels come?

Each operation at the size of one FLUX.1 attention at 1024 x 1024 on two ranks (2304 tokens, 24 heads of 128, bf16), timed against its minimum: the
bytes that it must read and write, at the bandwidth of a plain copy measured in the same run. On an NVIDIA GPU the public functions run the Triton
kernels, and the references are timed beside them (CUDA graphs and events, buffers larger than the L2 cache in turn). On a CPU only the references are timed.

    python -m tutti.benchmarks.kernels [--json FILE] [--check] [--rounds N] [--tokens N]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..kernels import all_to_all_permute, base_hash, lse_merge, residual_levels, residual_rows, row_quantise
from ..kernels.all_to_all_permute import reference as permute_reference
from ..kernels.base_hash import reference as hash_reference
from ..kernels.choice import has_triton
from ..kernels.lse_merge import reference as merge_reference
from ..kernels.residual_levels import reference as levels_reference
from ..kernels.residual_rows import reference as rows_reference
from ..kernels.row_quantise import reference as quantise_reference
from .report import Figure, Spread, argument_parser, finish

BENCHMARK: Final = "kernels"
HEADS: Final = 24
HEAD_DIM: Final = 128
PARTS: Final = 2
BUFFERS_BYTES: Final = 256 * 1024**2
"""What all buffers in turn have at least, on a GPU: several times any L2 cache."""
WARM_UP_ROUNDS: Final = 3
FORMS: Final = {"fp8": ("fp8", "raw", "fp8"), "int8-all": ("int8", "int8", "int8")}
LEVELS: Final = ("binary", "ternary", "quaternary")
ROWS: Final = ("int8", "int4")


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to time, as the kernel and as the reference does it, on one of several sets of tensors."""

    name: str
    kernel: Callable[[], object]
    reference: Callable[[], object]
    minimum_bytes: int


def operations(tokens: int, device: torch.device, seed: int) -> list[Operation]:
    """All of them on a set of tensors of their own."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    qkv = [draw(1, tokens, HEADS, HEAD_DIM).bfloat16() for _ in range(3)]
    size, found = sum(x.nbytes for x in qkv), []
    out, part = draw(1, HEADS, tokens, HEAD_DIM), qkv[0].transpose(1, 2)
    lse, part_lse = draw(1, HEADS, tokens), draw(1, HEADS, tokens)
    merge = (out, lse, part, part_lse)
    moved = 2 * out.nbytes + part.nbytes + 2 * lse.nbytes + part_lse.nbytes
    found.append(
        Operation("lse merge", lambda: lse_merge.lse_merge(*merge), lambda: merge_reference.lse_merge(*merge), moved)
    )
    found.append(
        Operation(
            "pack heads",
            lambda: all_to_all_permute.pack_heads(qkv, PARTS),
            lambda: permute_reference.pack_heads(qkv, PARTS),
            2 * size,
        )
    )
    for name, forms in FORMS.items():
        found += _quantised(name, forms, qkv, size)
    keys = qkv[1][0]
    for form in LEVELS:
        found += _in_levels(form, keys.flatten(1), torch.zeros_like(keys).flatten(1))
    for form in ROWS:
        found += _in_rows(form, keys, torch.zeros_like(keys))
    found.append(_hash(keys))
    return found


def _quantised(name: str, forms: Sequence[str], qkv: Sequence[Tensor], size: int) -> list[Operation]:
    packed = quantise_reference.pack_quantised(qkv, forms, PARTS)
    batch, dtype = qkv[0].shape[0], qkv[0].dtype

    def unpack(function: Callable[..., object]) -> Callable[[], object]:
        return lambda: function(packed, forms, batch=batch, head_dim=HEAD_DIM, dtype=dtype)

    return [
        Operation(
            f"quantise and pack, {name}",
            lambda: row_quantise.pack_quantised(qkv, forms, PARTS),
            lambda: quantise_reference.pack_quantised(qkv, forms, PARTS),
            size + packed.nbytes,
        ),
        Operation(
            f"unpack and dequantise, {name}",
            unpack(row_quantise.unpack_quantised),
            unpack(quantise_reference.unpack_quantised),
            size + packed.nbytes,
        ),
    ]


def _in_levels(form: str, x: Tensor, base: Tensor) -> list[Operation]:
    """The keys of one rank as a residual. That the base comes nearer from call to call changes no byte that is moved."""
    u, v = residual_levels.scales(x, base)
    codes = x.new_zeros(len(x), residual_levels.code_bytes(form, x.shape[1]), dtype=torch.uint8)
    size = residual_levels.payload_bytes(form, *x.shape)
    return [
        Operation(
            f"encode residual, {form}",
            lambda: residual_levels.encode(x, base, u, v, form, codes),
            lambda: levels_reference.encode(x, base, u, v, form, codes),
            x.nbytes + 2 * base.nbytes + size,
        ),
        Operation(
            f"decode residual, {form}",
            lambda: residual_levels.decode(codes, u, v, base, form),
            lambda: levels_reference.decode(codes, u, v, base, form, u),
            2 * base.nbytes + size,
        ),
    ]


def _in_rows(form: str, x: Tensor, base: Tensor) -> list[Operation]:
    payload = x.new_zeros(*x.shape[:2], residual_rows.row_bytes(form, HEAD_DIM), dtype=torch.uint8)
    return [
        Operation(
            f"encode residual, {form}",
            lambda: residual_rows.encode(x, base, form, payload),
            lambda: rows_reference.encode(x, base, form, payload, False),
            x.nbytes + 2 * base.nbytes + payload.nbytes,
        ),
        Operation(
            f"decode residual, {form}",
            lambda: residual_rows.decode(payload, base, form),
            lambda: rows_reference.decode(payload, base, form, False),
            2 * base.nbytes + payload.nbytes,
        ),
    ]


def _hash(base: Tensor) -> Operation:
    """Of the keys of one rank, as every transfer of a residual has it."""
    data, total = base.reshape(-1).view(torch.uint8), base.new_zeros((), dtype=torch.int64)
    return Operation(
        "hash of a base",
        lambda: base_hash.hash_of([base]),
        lambda: hash_reference.add_words(data, 0, total),
        base.nbytes,
    )


def timed_ms(calls: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> list[float]:
    """Milliseconds of one call in each round, buffers in turn."""
    return _on_gpu_ms(calls, rounds) if device.type == "cuda" else _on_cpu_ms(calls, rounds)


def _on_gpu_ms(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """All calls as one CUDA graph, so that what is timed is the GPU and not Python's launches."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for number in range(WARM_UP_ROUNDS + rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if number >= WARM_UP_ROUNDS:
            times.append(start.elapsed_time(end) / len(calls))
    return times


def _on_cpu_ms(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    times = []
    for number in range(WARM_UP_ROUNDS + rounds):
        began = time.perf_counter()
        calls[number % len(calls)]()
        if number >= WARM_UP_ROUNDS:
            times.append((time.perf_counter() - began) * 1000)
    return times


def copy_gbps(device: torch.device, rounds: int) -> float:
    """Bytes read and written a second, in 10**9, by a copy of 128 MiB."""
    source = torch.ones(BUFFERS_BYTES // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spread = Spread.of(timed_ms([lambda: target.copy_(source)], rounds, device))
    return 2 * source.nbytes / spread.p50 / 1e6


def measure(tokens: int, rounds: int, device: torch.device) -> list[Figure]:
    """All figures."""
    bandwidth = copy_gbps(device, rounds)
    figures = [Figure.one(case="copy", metric="bandwidth", value=bandwidth, unit="GB/s")]
    on_gpu = device.type == "cuda"
    sets = 1 if not on_gpu else max(2, BUFFERS_BYTES // (3 * tokens * HEADS * HEAD_DIM * 2))
    everything = [operations(tokens, device, seed) for seed in range(sets)]
    for same in zip(*everything, strict=True):
        ways = {"reference": [one.reference for one in same]} | (
            {"kernel": [one.kernel for one in same]} if on_gpu else {}
        )
        for way, calls in ways.items():
            times = timed_ms(calls, rounds, device)
            shares = [same[0].minimum_bytes / taken / 1e6 / bandwidth for taken in times]
            figures.append(Figure(case=same[0].name, metric=f"{way} time", spread=Spread.of(times), unit="ms"))
            figures.append(
                Figure(
                    case=same[0].name,
                    metric=f"{way} / copy bandwidth",
                    spread=Spread.of(shares),
                    unit="x",
                    baseline="copy",
                )
            )
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="measured rounds (default: 50)")
    parser.add_argument("--tokens", type=int, default=2304, help="of one rank (default: 2304)")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() and has_triton() else "cpu")
    print(
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else "no NVIDIA GPU with triton: the references only, on the CPU"
    )
    return finish(BENCHMARK, measure(options.tokens, options.rounds, device), options)


if __name__ == "__main__":
    sys.exit(main())
