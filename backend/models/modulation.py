"""Adaptive modulation of a sequence in which some tokens have a time of their own.

Shape letters: B batch, S tokens, C channels, V vectors: 1, or 2 of which the first is for the tokens apart (a frame that is given).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def of_tokens(part_BVC: Tensor, apart_S1: Tensor | None) -> Tensor:
    """A modulation as tokens take it: ``[B, 1, C]`` for all of them, or ``[B, S, C]``. ``apart``: bool, which tokens the first vector is for."""
    if apart_S1 is None:
        return part_BVC
    return torch.where(apart_S1, part_BVC[:, :1], part_BVC[:, 1:])


class Modulation:
    """Shift, scale and gate from a diffusers adaptive norm's own linear layer (``AdaLayerNormZero`` and its kin), once or, for attention
    and MLP, twice: ``[B, V, halves * 3 * C]``."""

    def __init__(self, norm: Any, vectors_BVC: Tensor) -> None:
        parts = norm.linear(norm.silu(vectors_BVC))
        self._parts = parts.unflatten(-1, (-1, 3, vectors_BVC.shape[-1]))

    def shifted(self, normed_BSC: Tensor, apart_S1: Tensor | None, half: int = 0) -> Tensor:
        """The input of an attention or MLP."""
        shift, scale, _ = self._parts[:, :, half].unbind(2)
        return normed_BSC * (1 + of_tokens(scale, apart_S1)) + of_tokens(shift, apart_S1)

    def gated(self, out_BSC: Tensor, apart_S1: Tensor | None, half: int = 0) -> Tensor:
        """The output of an attention or MLP."""
        return out_BSC * of_tokens(self._parts[:, :, half, 2], apart_S1)
