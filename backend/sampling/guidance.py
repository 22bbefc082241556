"""Conditioning branches: repeating them to the batch, sharing one model call, and combining the answers (classifier-free guidance)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Options = Mapping[str, str | int | float | bool]
Conditioning = Mapping[str, Tensor]

Network = Callable[[Tensor, Conditioning, Options], Tensor]
"""``network(x, conditioning, options) -> output like x``; the batch of every conditioning tensor is that of ``x``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchInput:
    """What one branch tells the network. The first dimension of every tensor is the batch."""

    conditioning: Conditioning
    options: Options


def repeat_to_batch(tensor: Tensor, batch: int) -> Tensor:
    """Repeat the entries of dimension 0 in turn, and cut, until there are ``batch`` of them: 0, 1, 0, 1, 0 for two and a batch of five."""
    if tensor.shape[0] < batch:
        times = -(-batch // tensor.shape[0])
        tensor = tensor.repeat(times, *(1,) * (tensor.ndim - 1))
    return tensor[:batch]


def can_share_a_call(branches: Sequence[BranchInput]) -> bool:
    """Whether the branches can be stacked along the batch: same names, shapes, dtypes and options."""

    def signature(branch: BranchInput) -> tuple[object, ...]:
        tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in branch.conditioning.items()}
        return tensors, dict(branch.options)

    return all(signature(branch) == signature(branches[0]) for branch in branches[1:])


def evaluate_branches(network: Network, x: Tensor, branches: Sequence[BranchInput]) -> list[Tensor]:
    """The network's answer for each branch at ``x``: by one call when all of them can share it, else by one call each.

    Prompts of different lengths are never padded to one another: padding would change what the network sees.
    """
    if len(branches) == 1 or not can_share_a_call(branches):
        return [network(x, branch.conditioning, branch.options) for branch in branches]
    names = branches[0].conditioning
    stacked = {name: torch.cat([branch.conditioning[name] for branch in branches]) for name in names}
    output = network(torch.cat([x] * len(branches)), stacked, branches[0].options)
    return list(output.chunk(len(branches)))


def combine(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on denoised latents: ``negative + (positive - negative) * scale`` (Ho and Salimans 2022, equation 6
    with ``scale = 1 + w``)."""
    return negative + (positive - negative) * scale
