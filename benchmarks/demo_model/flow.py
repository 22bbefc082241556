"""The transformer: FLUX.1's architecture in small, trained by rectified flow on the latents.

``x_t = (1 - t) x_0 + t noise``, the network learns ``noise - x_0`` (Liu et al. 2022, eq. 1), with logit-normal ``t`` (Esser et al. 2024, sec. 3.1).
Its mean and width favour much noise: flat shapes are still seen at ``t`` = 0.85, so what stands where is decided above that.
Three phases: small pictures; a few sizes; and guidance, where the network learns to give in one call what guidance of a scale gives in two
(Meng et al. 2023), with the scale as FLUX.1's guidance input.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor, nn
from torch.optim import Optimizer

from ...backend.assets.prompt import CONTEXT_WIDTH, POOLED_WIDTH, parse
from ...backend.models.families.flux import FluxGeometry
from .latents import Latents
from .loop import train
from .state import TrainingState, dice_of, generator_of

GEOMETRY: Final = FluxGeometry(
    hidden=256, depth=2, depth_single=8, in_channels=16, out_channels=16, context_dim=CONTEXT_WIDTH, pooled_dim=POOLED_WIDTH, guidance=True
)  # fmt: skip
_ROTARY_AXES: Final = (16, 56, 56)
_EMPTY_PROMPT: Final = 0.1
"""Share of examples without a prompt: what guidance points away from."""
_GUIDANCE: Final = (1.0, 5.0)
"""Scales that the network learns to take."""
_EMA: Final = 0.998
_LOGIT_MEAN: Final = 1.0
_LOGIT_STD: Final = 1.2


def new_transformer() -> Any:
    """An untrained one. Modulations and the last layer start at zero, so that every block starts as the identity."""
    torch.manual_seed(1)
    network = FluxTransformer2DModel(
        in_channels=GEOMETRY.in_channels * 4,
        out_channels=GEOMETRY.out_channels * 4,
        num_layers=GEOMETRY.depth,
        num_single_layers=GEOMETRY.depth_single,
        attention_head_dim=128,
        num_attention_heads=GEOMETRY.num_heads,
        joint_attention_dim=GEOMETRY.context_dim,
        pooled_projection_dim=GEOMETRY.pooled_dim,
        guidance_embeds=True,
        axes_dims_rope=_ROTARY_AXES,
    )
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if (
                name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear"))
                or name == "proj_out"
            ):
                nn.init.zeros_(module.weight)
    nn.init.normal_(network.context_embedder.weight, std=0.3)
    return network


def velocity(network: Any, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, guidance: Tensor) -> Tensor:
    """The network on latents ``[B, 16, H, W]`` (H, W even) at ``t`` ``[B]``; float32 like ``x``."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    out = network(
        hidden_states=patchify(x),
        encoder_hidden_states=context,
        pooled_projections=pooled,
        timestep=t,
        guidance=guidance,
        img_ids=positions(height, width),
        txt_ids=torch.zeros(context.shape[1], 3),
        return_dict=False,
    )[0]
    return unpatchify(out.float(), height, width)


def patchify(x: Tensor) -> Tensor:
    """``[B, C, 2h, 2w]`` -> ``[B, h w, 4 C]``, channels before the place within a patch, as FLUX.1 does."""
    batch, channels, height, width = x.shape
    cells = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def unpatchify(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`patchify`, for ``height`` x ``width`` patches."""
    cells = tokens.reshape(tokens.shape[0], height, width, -1, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], -1, height * 2, width * 2)


def positions(height: int, width: int) -> Tensor:
    """FLUX.1's image positions: (0, row, column), float32 ``[height width, 3]``."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def encode_prompts(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Context ``[B, 20, 64]`` and pooled vector ``[B, 64]``."""
    prompts = [parse(caption) for caption in captions]
    return torch.tensor([prompt.context() for prompt in prompts]), torch.tensor([prompt.pooled() for prompt in prompts])


@dataclass(frozen=True, slots=True)
class Batch:
    """One training step's examples."""

    x0: Tensor
    noise: Tensor
    t: Tensor
    context: Tensor
    pooled: Tensor
    guidance: Tensor

    @property
    def noisy(self) -> Tensor:
        """``x_t``."""
        t = self.t[:, None, None, None]
        return (1 - t) * self.x0 + t * self.noise


class Examples:
    """Draws batches from latents of several sizes; a batch has one size."""

    def __init__(
        self, phase: str, sets: Sequence[Latents], *, tokens: int, empty_prompts: float = _EMPTY_PROMPT
    ) -> None:
        """``tokens``: image tokens in a batch, so that larger pictures come in smaller batches."""
        self._phase, self._tokens, self._empty = phase, tokens, empty_prompts
        self._sets = sets
        self._prompts = [encode_prompts(latents.captions) for latents in sets]

    def batch(self, step: int) -> Batch:
        """The batch of a step: the same at every run."""
        dice, generator = dice_of(self._phase, step), generator_of(self._phase, step)
        which = dice.choices(range(len(self._sets)), [len(latents.captions) for latents in self._sets])[0]
        latents, (context, pooled) = self._sets[which].latents, self._prompts[which]
        count = max(1, self._tokens * 4 // (latents.shape[2] * latents.shape[3]))
        chosen = torch.randint(len(latents), (count,), generator=generator)
        keeps = (torch.rand(count, generator=generator) >= self._empty).float()
        x0 = latents[chosen].float()
        low, high = _GUIDANCE
        return Batch(
            x0=x0,
            noise=torch.randn(x0.shape, generator=generator),
            t=torch.sigmoid(_LOGIT_MEAN + _LOGIT_STD * torch.randn(count, generator=generator)),
            context=context[chosen] * keeps[:, None, None],
            pooled=pooled[chosen] * keeps[:, None],
            guidance=low + (high - low) * torch.rand(count, generator=generator),
        )


def optimizers_of(network: Any, scale: float) -> list[Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else. ``scale`` multiplies both rates."""
    inside = [
        p
        for name, p in network.named_parameters()
        if p.ndim == 2 and "transformer_blocks" in name and "norm" not in name
    ]
    known = {id(parameter) for parameter in inside}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in known]
    return [
        torch.optim.Muon(inside, lr=0.02 * scale, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=1e-3 * scale, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


class Average:
    """An exponential moving average of a network's parameters: what is shipped."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._live = network

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step ``step`` (from 0); the first ones count more, so that the start is forgotten."""
        keep = min(_EMA, (2 + step) / (11 + step))
        for mean, live in zip(self.network.parameters(), self._live.parameters(), strict=True):
            mean.lerp_(live, 1 - keep)


def train_flow(
    phase: str, network: Any, sets: Sequence[Latents], folder: Path, *, steps: int, tokens: int, rate: float, compiled: bool,
    teacher: Any | None = None,
) -> tuple[Any, list[tuple[int, float]]]:  # fmt: skip
    """One phase; returns the averaged network and the curve. With a ``teacher`` the target is the teacher's guided velocity."""
    average = Average(network)
    optimizers = optimizers_of(network, rate)
    examples = Examples(phase, sets, tokens=tokens, empty_prompts=0.0 if teacher else _EMPTY_PROMPT)
    run: Any = torch.compile(network, dynamic=False) if compiled else network
    guide = None if teacher is None else _guided(torch.compile(teacher, dynamic=False) if compiled else teacher)

    def step(number: int) -> float:
        batch = examples.batch(number)
        with torch.autocast("cpu", torch.bfloat16):
            target = batch.noise - batch.x0 if guide is None else guide(batch)
            predicted = velocity(run, batch.noisy, batch.t, batch.context, batch.pooled, batch.guidance)
        loss = (predicted - target).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        return float(loss.detach())

    state = TrainingState(
        folder / f"{phase}.state.safetensors",
        {"live": network, "average": average.network},
        {"muon": optimizers[0], "adam": optimizers[1]},
    )
    with warnings.catch_warnings():
        # Autocast leaves the weights of the query and key norms in float32: torch says once that it has no fused kernel for that.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        curve = train(phase, step, steps=steps, optimizers=optimizers, state=state, after_step=average.update)
    return average.network, curve


def _guided(teacher: Any) -> Callable[[Batch], Tensor]:
    """The teacher's velocity under guidance: away from what it gives without a prompt, by the batch's scales."""

    @torch.no_grad()
    def guide(batch: Batch) -> Tensor:
        both = velocity(
            teacher,
            torch.cat([batch.noisy, batch.noisy]),
            torch.cat([batch.t, batch.t]),
            torch.cat([batch.context, torch.zeros_like(batch.context)]),
            torch.cat([batch.pooled, torch.zeros_like(batch.pooled)]),
            torch.cat([batch.guidance, batch.guidance]),
        )
        asked, free = both.chunk(2)
        return free + batch.guidance[:, None, None, None] * (asked - free)

    return guide
