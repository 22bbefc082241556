"""Partial attentions over disjoint keys become one, exactly, by their log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.lse_merge import lse_merge
from .providers import Attended


class Merger:
    """Merges partial attentions over disjoint keys, in float32 at least.

    With ``w = sigmoid(lse_b - lse_a)``: ``out = out_a + w (out_b - out_a)`` and ``lse = log(exp(lse_a) + exp(lse_b))``. Example: equal sums
    (``lse_a == lse_b``) give ``w = 1/2``, the mean of both.
    """

    def __init__(self) -> None:
        self._out: Tensor | None = None
        self._lse: Tensor | None = None

    def add(self, part: Attended | None) -> None:
        """Merge one more part; its tensors belong to the merger from then on. ``None``: a part without keys, which changes nothing."""
        if part is None:
            return
        precise = torch.promote_types(part.out.dtype, torch.float32)
        if self._out is None or self._lse is None:
            self._out, self._lse = part.out.to(precise), part.lse
            return
        lse_merge(self._out, self._lse, part.out, part.lse)

    def result(self, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> Tensor:
        """The merged output in ``dtype``; zeros where there was nothing to attend to."""
        if self._out is None:
            return torch.zeros(shape, dtype=dtype, device=device)
        return self._out.to(dtype)
