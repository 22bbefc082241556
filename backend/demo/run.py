"""The demo from start to end. Everything it makes, except the picture, lies in a temporary folder and is gone afterwards."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ..assets.advice import read_prompt, warnings
from ..assets.files import AUTOENCODER, TRANSFORMER, shipped_file
from ..assets.prompt import Prompt
from ..client import Client
from ..errors import BadRequest, InternalError, RemoteProtocolError
from ..parallel.plan import CODECS, COMPRESSIONS, Plan
from ..wire.codec import Received
from ..wire.messages import Progress, Result
from ..wire.texts import size_text
from ..worker.tensors import to_torch
from .compare import labelled, psnr_db, psnr_text, side_by_side
from .daemon import running_daemon
from .options import DemoOptions
from .request import demo_sample
from .terminal import Terminal

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_CPU_RANKS: Final = 2
AT_ONCE: Final = 12
"""Pictures in one job."""
DECODED_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What the ranks gave."""

    latents: Tensor
    """``[pictures, 16, height / 8, width / 8]`` in model space."""
    plan: str
    step_ms: float
    """Median over the jobs of each one's median."""
    exchanged_bytes: int | None
    compression: str
    """What it brought in the first job, as the ranks say it; empty where nothing was compressed."""


def run_demo(options: DemoOptions) -> int:
    """Run the demo and print what happened. Returns the exit status.

    Raises:
        TuttiError: why it could not be done; whatever can be found out before a daemon is started, is.
    """
    from .autoencoder import decode, load_autoencoder  # diffusers takes seconds: a wrong prompt is told before
    from .sheet import draw_sheet

    terminal, started_s = Terminal(), time.monotonic()
    prompts = [read_prompt(text) for text in options.prompts]
    path = options.prepared_file()
    device, ranks = _devices(options)
    who = f"{ranks} {'GPU' if device == 'cuda' else 'CPU'} rank{'s' if ranks > 1 else ''}"
    terminal.line(f"Tutti demo: {_count(len(prompts), 'picture')} on {who}")
    plan = options.plan_on(ranks)
    _warn(terminal, options, prompts)
    with terminal.stage("check and load the files of the demo model"):
        shipped_file(TRANSFORMER)
        autoencoder = load_autoencoder(shipped_file(AUTOENCODER))
    with running_daemon(device, ranks, terminal) as client:
        without = None
        if plan and options.compression != COMPRESSIONS[0]:
            without = _draw(client, options, replace(plan, compression=COMPRESSIONS[0]), prompts, terminal)
        drawn = _draw(client, options, plan, prompts, terminal)
    with terminal.stage(f"write {path.name}"):
        pictures, captions = _decoded(decode, autoencoder, drawn), list(options.prompts)
        apart_db: list[float] = []
        if without:
            exact_pictures = _decoded(decode, autoencoder, without)
            apart_db = psnr_db(pictures, exact_pictures)
            pictures = side_by_side(exact_pictures, pictures)
            captions = labelled(captions, (COMPRESSIONS[0], options.compression))
        _write(draw_sheet(pictures, captions), path)
    for some in filter(None, (without, drawn)):
        _say_what_it_took(terminal, options, some)
    if apart_db:
        terminal.line(f"  Beside the pictures without compression: {psnr_text(apart_db)}")
    terminal.line(f"  Done in {time.monotonic() - started_s:.1f} s. The picture: {path}")
    return 0


def _decoded(decode: Callable[[Any, Tensor], Tensor], autoencoder: Any, drawn: Drawn) -> Tensor:
    """All pictures, a few at a time."""
    starts = range(0, len(drawn.latents), DECODED_AT_ONCE)
    return torch.cat([decode(autoencoder, drawn.latents[start : start + DECODED_AT_ONCE]) for start in starts])


def _write(sheet: Image.Image, path: Path) -> None:
    """Whole or not at all: an older picture stays if this one cannot be written."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        sheet.save(unfinished, "PNG")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise BadRequest(
            f"Free some space or choose another --out: {path} could not be written ({error.strerror or error})."
        ) from error


def _devices(options: DemoOptions) -> tuple[str, int]:
    """Where the ranks compute, and how many there are."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    asked = options.ranks or (options.chosen_plan.world_size if options.chosen_plan else None)
    return ("cuda", asked or gpus) if gpus else ("cpu", asked or DEFAULT_CPU_RANKS)


def _warn(terminal: Terminal, options: DemoOptions, prompts: Sequence[Prompt]) -> None:
    for warning in options.warnings():
        terminal.line(f"  ! {warning}")
    for text, prompt in zip(options.prompts, prompts, strict=True):
        for warning in warnings(prompt):
            terminal.line(f"  ! In '{text}': {warning}")


def _draw(
    client: Client, options: DemoOptions, plan: Plan | None, prompts: Sequence[Prompt], terminal: Terminal
) -> Drawn:
    width, height = options.width_and_height
    jobs = [prompts[start : start + AT_ONCE] for start in range(0, len(prompts), AT_ONCE)]
    latents: list[Tensor] = []
    results: list[Result] = []
    how = f", {plan.compression}" if plan and options.compression != COMPRESSIONS[0] else ""
    name = f"draw {_count(len(prompts), 'picture')} of {width} x {height}, {_count(options.steps, 'step')}{how}"
    with terminal.stage(name):
        for number, job in enumerate(jobs):
            sample, tensors = demo_sample(
                job,
                width=width,
                height=height,
                steps=options.steps,
                guidance=options.guidance,
                first_seed=options.seed + number * AT_ONCE,
                plan="" if plan is None else str(plan),
                client_id=client.client_id,
            )
            received = client.sample(sample, tensors, _bar(terminal, number * options.steps, len(jobs) * options.steps))
            if not isinstance(received.message, Result):
                raise RemoteProtocolError(f"a Sample was answered with {type(received.message).__name__}")
            results.append(received.message)
            latents.append(to_torch(received.tensors["latent"]).clone())
    return _checked(latents, results)


def _bar(terminal: Terminal, before: int, total: int) -> Callable[[Received], None]:
    """Draws the progress of one of several jobs."""

    def show(received: Received) -> None:
        message = received.message
        if isinstance(message, Progress) and message.phase == "sampling":
            terminal.bar("drawing", before + message.step, total)
        elif isinstance(message, Progress):
            terminal.bar(f"{message.phase} the model", message.step, message.steps)

    return show


def _checked(latents: Sequence[Tensor], results: Sequence[Result]) -> Drawn:
    together = torch.cat(list(latents))
    if not bool(torch.isfinite(together).all()):
        raise InternalError("Run `tutti doctor` and report this: the ranks computed numbers that make no picture.")
    exchanged = [result.exchanged_bytes for result in results]
    return Drawn(
        latents=together,
        plan=results[0].plan,
        step_ms=statistics.median(result.step_ms for result in results),
        exchanged_bytes=None if None in exchanged else sum(filter(None, exchanged)),
        compression=results[0].compression,
    )


def _say_what_it_took(terminal: Terminal, options: DemoOptions, drawn: Drawn) -> None:
    at_once = min(len(options.prompts), AT_ONCE)
    ran = Plan.parse(drawn.plan)
    codec = "off" if ran.codec == CODECS[0] else f"{ran.codec} (approximate)"
    compression = "off" if ran.compression == COMPRESSIONS[0] else f"{ran.compression} (approximate)"
    shown = replace(ran, codec=CODECS[0], compression=COMPRESSIONS[0])
    terminal.line(f"  Plan {shown}, codec {codec}, compression {compression}")
    if drawn.compression:
        terminal.line(f"  {drawn.compression}")
    terminal.line(f"  {drawn.step_ms:.1f} ms a step (median), for {_count(at_once, 'picture')} at once")
    if drawn.exchanged_bytes is not None:
        steps = options.steps * -(-len(options.prompts) // AT_ONCE)
        each = size_text(drawn.exchanged_bytes / steps)
        terminal.line(f"  {size_text(drawn.exchanged_bytes)} exchanged between the ranks, {each} a step")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
