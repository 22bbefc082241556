"""The demo from start to end. Everything it makes, except the picture, lies in a temporary folder and is gone afterwards."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..client import Client
from ..wire.codec import Received
from ..wire.connection import Connection
from ..wire.messages import Accepted, Preview, Progress, Result
from .daemon import OwnDaemon
from .terminal import Terminal

_SOFTWARE: Final = "tutti demo"
_MODEL: Final = "diffusion_models/demo.safetensors"
_CONTEXT_WIDTH: Final = 256
_POOLED_WIDTH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What ``tutti demo`` can be told."""

    out: Path = field(default=Path("demo.png"))
    """Where the picture goes."""
    plan: str = ""
    """``ulysses=2,ring=1``; empty lets the daemon choose."""
    ranks: int | None = None
    """Ranks to start; None means every GPU, or two CPU ranks."""
    steps: int = 12
    size: int = 384
    """Side of the square picture, in pixels."""


def run_demo(options: DemoOptions) -> int:
    """Run the demo and print what happened. Returns the exit status."""
    terminal = Terminal()
    started_s = time.monotonic()
    device, ranks = _devices(options.ranks)
    terminal.line("Tutti demo: one picture on all your " + ("GPUs" if device == "cuda" else "CPU ranks"))
    terminal.line(
        "  The checkpoint is small and random, so the picture has no subject: it shows that the parts work together."
    )
    with tempfile.TemporaryDirectory(prefix="tutti-demo-") as folder:
        root = Path(folder)
        with terminal.stage("write a small random FLUX.1 checkpoint"):
            _write_checkpoint(root / "models" / _MODEL)
        with _daemon(root, device, ranks, terminal) as connection:
            _draw(connection, options, terminal)
    terminal.line(f"  Done in {time.monotonic() - started_s:.1f} s. The picture: {options.out.resolve()}")
    return 0


def _devices(ranks: int | None) -> tuple[str, int]:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ("cuda", ranks or gpus) if gpus else ("cpu", ranks or 2)


def _write_checkpoint(path: Path) -> None:
    from ..models.tiny import write_tiny_flux

    path.parent.mkdir(parents=True)
    write_tiny_flux(path, hidden=512, depth=2, depth_single=4, context_dim=_CONTEXT_WIDTH, pooled_dim=_POOLED_WIDTH)


@contextmanager
def _daemon(root: Path, device: str, ranks: int, terminal: Terminal) -> Iterator[Connection]:
    """A daemon with a state directory of its own, ready to work; stopped at the end, whatever happened."""
    with terminal.stage(f"start a daemon with {ranks} {device.upper()} rank{'s' if ranks > 1 else ''}"):
        started = OwnDaemon.start(root / "models", root / "state", device=device, ranks=ranks, software=_SOFTWARE)
    try:
        yield started.connection
    finally:
        with terminal.stage("stop the daemon"):
            started.stop()


@contextmanager
def _client(connection: Connection) -> Iterator[Client]:
    with Client(connection, client_id=secrets.token_hex(16), software=_SOFTWARE) as client:
        client.connect()
        yield client


class _Watch:
    """Follows one job: draws its progress and counts its previews."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.previews = 0
        self.ran_on = ""

    def __call__(self, received: Received) -> None:
        message = received.message
        if isinstance(message, Accepted):
            self._terminal.update("accepted")
        elif isinstance(message, Preview):
            self.previews += 1
        elif isinstance(message, Progress):
            self.ran_on = message.text or self.ran_on
            self._terminal.bar(message.phase, message.step, message.steps)


def _draw(connection: Connection, options: DemoOptions, terminal: Terminal) -> None:
    from ..worker.tensors import to_torch
    from .job import demo_sample
    from .picture import PIXELS_PER_CELL, write_png

    watch = _Watch(terminal)
    with _client(connection) as client:
        sample, tensors = demo_sample(
            _MODEL,
            options.plan,
            cells=options.size // PIXELS_PER_CELL,
            steps=options.steps,
            context_width=_CONTEXT_WIDTH,
            pooled_width=_POOLED_WIDTH,
            client_id=client.client_id,
        )
        with terminal.stage(f"sample {options.steps} Euler steps at {options.size} x {options.size}"):
            received = client.sample(sample, tensors, watch)
    result = received.message
    if isinstance(result, Result):
        terminal.line(
            f"    plan {result.plan}, {result.step_ms:.1f} ms a step (median), {watch.previews} previews on the way"
        )
    latent = received.tensors["latent"]
    with terminal.stage(f"write {os.fspath(options.out)}"):
        write_png(to_torch(latent)[0], options.out)
