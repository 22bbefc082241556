"""What a local attention is: its result, and what it must say about itself.

A ring needs both the output and, per query and head, ``lse = log(sum_j exp(scale * q . k_j))``, so that partial results over
disjoint keys can be merged exactly. Layouts follow torch: ``[batch, heads, tokens, head_dim]``, any strides with a dense last dimension.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Attended(NamedTuple):
    """The result of one local attention."""

    out: Tensor
    """``[batch, heads, queries, head_dim]`` in the dtype of the query."""
    lse: Tensor
    """``[batch, heads, queries]`` float32 (float64 for float64 input); no element from a kernel that gives none, which no ring may use."""


class AttentionProvider(Protocol):
    """One implementation of softmax(scale * q k^T) v without a mask."""

    name: str
    exact: bool
    """Whether it computes the formula up to the rounding of its dtype; quantised or sparse attention does not."""

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        """Whether the kernel accepts such tensors. Cheap, and imports nothing that is not there."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        """Attend; there is at least one query and one key."""
