"""The merge of partial attentions in torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def lse_merge(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor) -> None:
    """``w = sigmoid(lse_b - lse_a)``; ``out = lerp(out_a, out_b, w)``; ``lse = log(exp(lse_a) + exp(lse_b))``; in place on a.

    Example: ``lse_a == lse_b == 2`` gives ``w = 1/2``, the mean of both outputs, and ``lse = 2 + log 2``.

    A log-sum-exp of minus infinity is a side that saw no key: its output counts for nothing, whatever (finite) it is; where both sides are
    empty, ``out`` stays. NaN stays NaN: a broken part must show.

    Args:
        out: ``[B, H, S, D]`` float32 (float64 for float64 parts), any strides.
        lse: ``[B, H, S]`` of the same dtype.
        part_out: like ``out``, also bfloat16 or float16.
        part_lse: like ``lse``.

    Source: the online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867) over blocks, as in ring attention (arXiv:2310.01889).
    """
    weight = torch.sigmoid(part_lse - lse)
    # Two empty sides: -inf - -inf is NaN.
    weight.masked_fill_(part_lse == -torch.inf, 0.0)
    out.lerp_(part_out.to(out.dtype), weight.unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, part_lse))
