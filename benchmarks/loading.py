"""How long until a checkpoint is resident, and how long a LoRA takes to come in, against what the bytes alone cost on this machine.

A random FLUX.1 of some 500 MB in bf16, read from the page cache, on the CPU. *Loading* ends when every page of every weight has been touched; its
baseline reads the same file into memory. *Swapping* goes from one LoRA over every matrix to another; its baseline reads the file, and
reads and writes the weights that change, once. Every round measures a thing and its baseline, in changing order.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from ..backend.models.lora.variants import KEPT, Lora
from ..backend.models.registry import ResidentModel, load_model
from ..backend.models.tiny import write_tiny_flux
from .report import Figure, Spread, argument_parser, finish

BENCHMARK: Final = "loading"
LOADING: Final = "checkpoint in bf16 from the page cache, CPU"
SWAPPING: Final = "LoRA of rank 16 over every matrix, CPU"
RATE: Final = "rate to resident / read rate of the file"
SWAP: Final = "swap time / read the file, read and write the weights"
ROUNDS: Final = 7
RANK: Final = 16
_PAGE: Final = 4096
_PIECE: Final = 8 * 1024**2


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def read_whole(path: Path) -> None:
    """Every byte of a file, into memory that is used again."""
    buffer = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def load_resident(path: Path) -> ResidentModel:
    """Load, and touch every page of every weight."""
    model = load_model(path, dtype=torch.bfloat16, device=torch.device("cpu"), progress=lambda _: None)
    for tensor in model.adapter.network.state_dict().values():  # type: ignore[attr-defined]
        tensor.flatten().view(torch.uint8)[::_PAGE].max()
    return model


def measure_loading(path: Path, rounds: int) -> list[Figure]:
    """Loading against reading."""
    loads, reads = list[float](), list[float]()
    load_resident(path)  # libraries, and the page cache
    for number in range(rounds):
        for is_load in (True, False) if number % 2 else (False, True):
            if is_load:
                loads.append(_seconds(lambda: load_resident(path)))
            else:
                reads.append(_seconds(lambda: read_whole(path)))
    size_gb = path.stat().st_size / 1e9
    ratios = [read / load for read, load in zip(reads, loads, strict=True)]
    return [
        Figure(case=LOADING, metric="read rate", spread=Spread.of([size_gb / read for read in reads]), unit="GB/s"),
        Figure(case=LOADING, metric="time to resident", spread=Spread.of(loads), unit="s"),
        Figure(case=LOADING, metric=RATE, spread=Spread.of(ratios), unit="", baseline="reading the file into memory"),
    ]


def write_lora(checkpoint: Path, path: Path, seed: int) -> list[str]:
    """A LoRA over every matrix of a checkpoint; returns the weights that it changes."""
    generator = torch.Generator().manual_seed(seed)
    changed, tensors = [], {}
    for name, weight in load_file(checkpoint).items():
        if weight.ndim == 2:
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.randn(RANK, weight.shape[1], generator=generator).bfloat16()
            tensors[f"{layer}.lora_B.weight"] = torch.randn(weight.shape[0], RANK, generator=generator).bfloat16()
            changed.append(name)
    save_file(tensors, path)
    return changed


def measure_swapping(checkpoint: Path, folder: Path, rounds: int) -> list[Figure]:
    """One LoRA after another that was never seen, as somebody does who tries strengths."""
    model = load_resident(checkpoint)
    lora = folder / "lora.safetensors"
    changed = write_lora(checkpoint, lora, 1)
    swaps, bytes_alone = list[float](), list[float]()
    # As many files are kept on either side, and the first rounds fill both: afterwards both write into memory that has been used before. A
    # virtual machine's first touch of a page costs more than the rest of a round.
    for number in range(-KEPT - 1, rounds):
        out = folder / f"written-{number % KEPT}"
        swap_s = _seconds(lambda number=number: _swap(model, lora, 0.5 + number / 100, folder))  # type: ignore[misc]
        alone_s = _seconds(lambda out=out: _read_and_write(checkpoint, lora, changed, out))  # type: ignore[misc]
        if number >= 0:
            swaps.append(swap_s)
            bytes_alone.append(alone_s)
    ratios = [swap / alone for swap, alone in zip(swaps, bytes_alone, strict=True)]
    return [
        Figure(case=SWAPPING, metric="swap time", spread=Spread.of(swaps), unit="s"),
        Figure(
            case=SWAPPING, metric=SWAP, spread=Spread.of(ratios), unit="", baseline="the bytes alone, in the same round"
        ),
    ]


def _swap(model: ResidentModel, lora: Path, strength: float, folder: Path) -> None:
    assert model.variants is not None
    wanted = Lora(path=str(lora), fingerprint="1", strength=strength)
    model.variants.switch(model.variants.prepare([wanted], identity="benchmark", folder=folder / "variants"))


def _read_and_write(checkpoint: Path, lora: Path, changed: list[str], out: Path) -> None:
    read_whole(lora)
    weights = load_file(checkpoint)
    out.unlink(missing_ok=True)
    with out.open("wb", buffering=0) as file:
        for name in changed:
            file.write(weights[name].clone().reshape(-1).view(torch.uint8).numpy().tobytes())


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds to measure (default: {ROUNDS})")
    parser.add_argument("--hidden", type=int, default=1536, help="width of the network (default: 1536, some 500 MB)")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files are made (default: a temporary folder)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="tutti-loading-", dir=options.folder) as name:
        folder = Path(name)
        checkpoint = folder / "checkpoint.safetensors"
        write_tiny_flux(checkpoint, hidden=options.hidden, depth=2, depth_single=3, dtype=torch.bfloat16)
        figures = measure_loading(checkpoint, options.rounds) + measure_swapping(checkpoint, folder, options.rounds)
    return finish(BENCHMARK, figures, options)


if __name__ == "__main__":
    sys.exit(main())
