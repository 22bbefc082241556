"""What does each payload format cost, and what does it lose?

One matrix of keys, by default that of a FLUX.1 attention at 1024 x 1024 on four ranks (1088 rows, 24 heads of 128, bf16). Bytes are counted, without the 16
bytes of a channel's header. Encoding and decoding are timed eagerly, as a model call runs them: wall clock and one thread on a CPU, CUDA events and buffers larger
than the L2 cache in turn on a GPU. What is lost is measured in the closed loop, on synthetic trajectories of 28 steps that change as FLUX.1's were
published to (:mod:`.published_walk`); where a codec is one of residuals, a key frame in int4 comes first. Hashes are timed beside what they are part
of too: the attention and the matrices of one block.

    python -m tutti.benchmarks.codecs [--json FILE] [--check] [--rounds N] [--rows N ...] [--heads N] [--head-dim N]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from ..backend.compression.channel import Channel, Watch
from ..backend.compression.codecs import CODECS, Codec
from ..backend.compression.policy import PRESETS
from ..backend.compression.state import MatrixShape, ResidualState, StateForm
from ..kernels.base_hash import hash_of
from .baselines import NaiveBinary, PublishedLowRank
from .published_walk import SPECTRA, STEPS, published_walk
from .report import Figure, Spread, argument_parser, finish

BENCHMARK: Final = "codecs"
DTYPE: Final = torch.bfloat16
KEY: Final = "key-int4"
BUFFERS_BYTES: Final = 256 * 1024**2
"""What all buffers in turn have at least, on a GPU."""
WARM_UP_ROUNDS: Final = 3
RANKS: Final = 4
"""Of the ring whose hashes are counted."""
WEIGHTS: Final = 12
"""Numbers of a block's weights, in squares of its width: 4 around the attention and 8 in the MLP, as in FLUX.1 and most others."""
LARGEST_STATE: Final = "balanced"
"""The preset that has most to hash: a base and its trend."""
BASELINES: Final[Mapping[str, Codec]] = {codec.name: codec for codec in (PublishedLowRank(), NaiveBinary())}
"""As published by others, and one bit without a base: the control."""


def codecs() -> dict[str, Codec]:
    """All that are measured."""
    return {**CODECS, **BASELINES}


def case_of(name: str, shape: MatrixShape) -> str:
    """What a row of the table is called."""
    return f"{name}, {shape.rows} x {shape.heads} x {shape.head_dim}"


# --- bytes ------------------------------------------------------------------------------------------------------------


def raw_bytes(shape: MatrixShape) -> int:
    """Of the matrix in bf16."""
    return shape.rows * shape.channels * DTYPE.itemsize


def trajectory_bytes(codec: Codec, shape: MatrixShape, *, key: str, steps: int = STEPS) -> int:
    """Of all steps: a key frame, and this codec's payloads."""
    return CODECS[key].payload_bytes(shape, DTYPE) + (steps - 1) * codec.payload_bytes(shape, DTYPE)


def size_figures(name: str, codec: Codec, shape: MatrixShape) -> list[Figure]:
    """Bytes and ratios, which are exact."""
    case, raw, payload = case_of(name, shape), raw_bytes(shape), codec.payload_bytes(shape, DTYPE)
    figures = [
        Figure.one(case=case, metric="payload", value=payload, unit="bytes"),
        Figure.one(case=case, metric="bf16 / payload", value=raw / payload, unit="x", baseline="bf16"),
    ]
    if not codec.is_key:
        figures += [
            Figure.one(
                case=case,
                metric=f"bf16 / trajectory with {key} key frame",
                value=STEPS * raw / trajectory_bytes(codec, shape, key=key),
                unit="x",
                baseline="bf16",
            )
            for key in (KEY, "raw")
        ]
    return figures


# --- time -------------------------------------------------------------------------------------------------------------


def filled_state(codec: Codec, x_NC: Tensor, shape: MatrixShape) -> ResidualState:
    """A state behind a key frame where the codec needs one."""
    state = ResidualState(shape, x_NC.dtype, x_NC.device, StateForm())
    if not codec.is_key:
        CODECS[KEY].encode(x_NC, state, new_payload(CODECS[KEY], shape, x_NC.device))
    return state


def new_payload(codec: Codec, shape: MatrixShape, device: torch.device) -> Tensor:
    """Flat bytes."""
    return torch.zeros(codec.payload_bytes(shape, DTYPE), dtype=torch.uint8, device=device)


def time_figures(name: str, codec: Codec, shape: MatrixShape, rounds: int, device: torch.device) -> list[Figure]:
    """Encode, decode, and the hash that goes with either of a residual."""
    sets = 1 if device.type == "cpu" else max(2, BUFFERS_BYTES // (2 * raw_bytes(shape)))
    encode, decode, hashed = [], [], []
    for seed in range(sets):
        first, second = published_walk(shape.rows, shape.channels, steps=2, seed=seed, device=device)
        encode.append(_encoding(codec, first.to(DTYPE), second.to(DTYPE), shape))
        decode.append(_decoding(codec, first.to(DTYPE), second.to(DTYPE), shape))
        hashed.append(_hashing(codec, second.to(DTYPE), shape))
    times = {
        what: timed_ms(calls, rounds, device)
        for what, calls in (("encode", encode), ("decode", decode), ("hash", hashed))
    }
    case = case_of(name, shape)
    figures = [
        Figure(case=case, metric=f"{what} time", spread=Spread.of(times[what]), unit="ms")
        for what in ("encode", "decode")
    ]
    if not codec.is_key:
        shares = [2 * h / (e + d) for e, d, h in zip(times["encode"], times["decode"], times["hash"], strict=True)]
        figures.append(
            Figure(case=case, metric="hashes / (encode + decode)", spread=Spread.of(shares), unit="x", baseline=case)
        )
    return figures


def _encoding(codec: Codec, first: Tensor, second: Tensor, shape: MatrixShape) -> Callable[[], object]:
    state, payload = filled_state(codec, first, shape), new_payload(codec, shape, first.device)
    return lambda: codec.encode(second, state, payload)


def _decoding(codec: Codec, first: Tensor, second: Tensor, shape: MatrixShape) -> Callable[[], object]:
    payload = new_payload(codec, shape, first.device)
    codec.encode(second, filled_state(codec, first, shape), payload)
    state = filled_state(codec, first, shape)
    return lambda: codec.decode_into(payload, state)


def _hashing(codec: Codec, x_NC: Tensor, shape: MatrixShape) -> Callable[[], object]:
    state = filled_state(CODECS["binary"], x_NC, shape)  # any residual's: all keep the same
    return lambda: hash_of(state.kept)


def hash_figure(shape: MatrixShape, rounds: int, device: torch.device) -> Figure:
    """What hashing costs of a block that exchanges its keys and values in a ring of :data:`RANKS`, with the state that ``balanced`` keeps."""
    preset, watch = PRESETS[LARGEST_STATE], Watch(device)
    channels = [Channel([shape] * 2, DTYPE, device, preset.form, watch) for _ in range(RANKS)]
    """Of keys and values of each owner, its own among them."""
    for seed, channel in enumerate(channels):
        for step in published_walk(shape.rows, shape.channels, steps=2, seed=seed, device=device):
            channel.encode([step.to(DTYPE)] * 2, preset.codec(is_key=channel.is_empty))
    x_NC = torch.randn(shape.rows, shape.channels, device=device).to(DTYPE)
    qkv_HND = x_NC.view(shape.rows, shape.heads, shape.head_dim).transpose(0, 1)[None]
    weights_CM = torch.randn(shape.channels, WEIGHTS * shape.channels, device=device).to(DTYPE)

    def compute() -> None:
        for _ in range(RANKS):
            torch.nn.functional.scaled_dot_product_attention(qkv_HND, qkv_HND, qkv_HND)
        torch.mm(x_NC, weights_CM)

    def hash_all() -> None:
        for channel in channels:
            channel.hash()

    shares = []
    for _ in range(rounds):
        (hashing,), (computing,) = timed_ms([hash_all], 1, device), timed_ms([compute], 1, device)
        shares.append(hashing / computing)
    return Figure(
        case=case_of("hash", shape), metric="hashes of a block / the block", spread=Spread.of(shares), unit="x"
    )


def timed_ms(calls: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> list[float]:
    """Milliseconds of one call in each round, buffers in turn."""
    times = []
    for number in range(WARM_UP_ROUNDS + rounds):
        taken = _on_gpu_ms(calls) if device.type == "cuda" else _on_cpu_ms(calls[number % len(calls)])
        if number >= WARM_UP_ROUNDS:
            times.append(taken)
    return times


def _on_gpu_ms(calls: Sequence[Callable[[], object]]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for call in calls:
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / len(calls)


def _on_cpu_ms(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return (time.perf_counter() - began_s) * 1000


# --- what is lost -----------------------------------------------------------------------------------------------------


def closed_loop_errors(codec: Codec, steps: Iterable[Tensor], shape: MatrixShape) -> list[float]:
    """``|decoded - x| / |x|`` in every step, the key frame first."""
    found: list[float] = []
    state: ResidualState | None = None
    for x_NC in steps:
        x_NC = x_NC.to(DTYPE)
        if state is None:
            state = ResidualState(shape, DTYPE, x_NC.device, StateForm())
        used = CODECS[KEY] if state.is_empty and not codec.is_key else codec
        known = used.encode(x_NC, state, new_payload(used, shape, x_NC.device))
        found.append(float((known.float() - x_NC.float()).norm() / x_NC.float().norm()))
    return found


def loss_figures(name: str, codec: Codec, shape: MatrixShape, spectrum: str, walk: Sequence[Tensor]) -> list[Figure]:
    """Of a whole trajectory: error over all of its steps, and how it grew."""
    errors = closed_loop_errors(codec, walk, shape)
    case = case_of(name, shape)
    spread, mean = Spread.of(errors), sum(errors) / len(errors)
    figures = [
        Figure(case=case, metric=f"relative error, steps of a {spectrum} walk", spread=spread, unit=""),
        Figure.one(case=case, metric=f"mean relative error, {spectrum} walk", value=mean, unit=""),
    ]
    if errors[1] > 0:
        drift = errors[-1] / errors[1]
        figures.append(
            Figure.one(case=case, metric=f"last error / first residual's, {spectrum} walk", value=drift, unit="x")
        )
    return figures


def measure(shapes: Sequence[MatrixShape], rounds: int, device: torch.device) -> list[Figure]:
    """All figures."""
    figures = []
    with torch.no_grad():
        for shape in shapes:
            walks = {
                spectrum: [
                    x.to(DTYPE) for x in published_walk(shape.rows, shape.channels, device=device, spectrum=spectrum)
                ]
                for spectrum in SPECTRA
            }
            figures.append(hash_figure(shape, rounds, device))
            for name, codec in codecs().items():
                figures += size_figures(name, codec, shape)
                figures += time_figures(name, codec, shape, rounds, device)
                for spectrum, walk in walks.items():
                    figures += loss_figures(name, codec, shape, spectrum, walk)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds (default: 11)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1088], help="of a matrix; several for several shapes")
    parser.add_argument("--heads", type=int, default=24, help="(default: 24)")
    parser.add_argument("--head-dim", type=int, default=128, help="(default: 128)")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # as a rank has it where several share a CPU
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else "no NVIDIA GPU: on the CPU")
    shapes = [MatrixShape(rows=rows, heads=options.heads, head_dim=options.head_dim) for rows in options.rows]
    return finish(BENCHMARK, measure(shapes, options.rounds, device), options)


if __name__ == "__main__":
    sys.exit(main())
