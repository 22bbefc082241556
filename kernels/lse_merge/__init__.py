"""Merge partial attentions over disjoint keys by their log-sum-exp, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ..choice import runs_triton
from . import reference


def lse_merge(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor) -> None:
    """Merge one more part into the accumulators ``out`` and ``lse``; see :func:`.reference.lse_merge` for formula and shapes.

    The Triton kernel runs on CUDA where triton is installed: it reads and writes the output once, torch's five operators more often. Float64
    accumulators, and output whose last dimension is not dense, take the reference.
    """
    takes = out.dtype == torch.float32 and out.stride(-1) == part_out.stride(-1) == 1
    if takes and runs_triton(out, lse, part_out, part_lse):
        from .triton import lse_merge as merge

        merge(out, lse, part_out, part_lse)
    else:
        reference.lse_merge(out, lse, part_out, part_lse)
