"""Every prompt under one setting: a daemon of its own, batches of prompts as Sample messages, and the latents that come back."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ...backend.assets.advice import GUIDANCE
from ...backend.assets.files import TRANSFORMER
from ...backend.client import Client
from ...backend.demo.options import STEPS
from ...backend.demo.request import flux_sigmas
from ...backend.demo.terminal import Terminal
from ...backend.errors import InternalError, UnknownModel
from ...backend.wire.messages import Branch, ModelRef, Result, Sample
from ...backend.wire.plans import shown_plan
from ...backend.wire.tensors import WireTensor
from ...backend.worker.tensors import to_torch, to_wire
from ..baselines import EXCHANGE_VARIABLE
from ..daemon import daemon
from ..demo_model.flow import encode_prompts
from .prompts import Prompt, noise_of
from .settings import Setting

MEASURED: Final = "diffusion_models/measured.safetensors"
BASELINE_RANK: Final = ("--rank-module", "tutti.benchmarks.baseline_rank")
BATCH: Final = 20
"""Prompts of one Sample."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """All prompts under one setting."""

    latents: Tensor
    """The final ones, float32 ``[N, 16, 16, 16]``."""
    exchanged_bytes: int
    """What all ranks together have sent for them."""


def sample_prompts(models: Path, setting: Setting, prompts: Sequence[Prompt]) -> Sampled:
    """All prompts, by the demo model below ``models``.

    Raises:
        UnknownModel: it is not there.
    """
    if not (models / TRANSFORMER).is_file():
        raise UnknownModel(f"Give --models a folder with {TRANSFORMER}: there is none in this one.")
    terminal, answers = Terminal(), list[Sampled]()
    arguments = BASELINE_RANK if setting.exchange else ()
    environment = {EXCHANGE_VARIABLE: setting.exchange} if setting.exchange else {}
    with (
        _under_another_name(models / TRANSFORMER) as folder,
        daemon(folder, ranks=setting.plan.world_size, arguments=arguments, environment=environment) as client,
    ):
        for first in range(0, len(prompts), BATCH):
            terminal.bar(setting.name, first, len(prompts))
            answers.append(_run(client, setting, prompts[first : first + BATCH]))
    exchange = f" with {setting.exchange} for its compression" if setting.exchange else ""
    plan = f"{shown_plan(str(setting.plan))}{exchange}"
    terminal.line(f"  ✓ {setting.name}: {len(prompts)} prompts, {plan}, {setting.dtype}")
    return Sampled(torch.cat([answer.latents for answer in answers]), sum(answer.exchanged_bytes for answer in answers))


@contextmanager
def _under_another_name(transformer: Path) -> Iterator[Path]:
    """A models folder with this file as :data:`MEASURED`: by its own name the daemon would give the one that ships."""
    with tempfile.TemporaryDirectory(prefix="tutti-quality-") as folder:
        link = Path(folder) / MEASURED
        link.parent.mkdir()
        link.symlink_to(transformer.resolve())
        yield Path(folder)


def sample_of(setting: Setting, prompts: Sequence[Prompt]) -> tuple[Sample, dict[str, WireTensor]]:
    """One batch as a message: 28 steps of euler on FLUX.1's schedule. Each prompt has its own row of noise and conditioning."""
    context, pooled = encode_prompts([prompt.text for prompt in prompts])
    tensors = {
        "noise": noise_of(prompts),
        "sigmas": flux_sigmas(STEPS),
        "branch.0.context": context,
        "branch.0.pooled": pooled,
        "branch.0.guidance": torch.full((len(prompts),), GUIDANCE[1]),
    }
    sample = Sample(
        job_id=secrets.token_hex(16),
        node_id="quality",
        on=ModelRef(model=MEASURED, family="flux", dtype=setting.dtype, plan=str(setting.plan)),
        sampler="euler",
        cfg=1.0,
        timestep_multiplier=1.0,
        branches=(Branch(kind="positive"),),
        previews=False,
    )
    return sample, {name: to_wire(tensor) for name, tensor in tensors.items()}


def _run(client: Client, setting: Setting, prompts: Sequence[Prompt]) -> Sampled:
    received = client.sample(*sample_of(setting, prompts), lambda _: None)
    if not isinstance(received.message, Result):
        raise InternalError("A Sample was answered with something else than a Result.")
    if received.message.exchanged_bytes is None:
        raise InternalError("A daemon of this release counts what its ranks exchange.")
    return Sampled(to_torch(received.tensors["latent"]).clone(), received.message.exchanged_bytes)
