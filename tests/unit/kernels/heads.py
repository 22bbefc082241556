"""Tensors for the kernels' tests: odd shapes, every dtype, rows of very different size, and views as attentions hand them over."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = {
    "two parts": (2, 5, 6, 16, 2),
    "one part, odd head_dim": (1, 7, 3, 5, 1),
    "three parts, batch 3, one token": (3, 1, 3, 24, 3),
    "four parts, no token": (2, 0, 4, 8, 4),
    "head_dim 1": (1, 3, 4, 1, 2),
}
"""Name -> (batch, tokens, heads, head_dim, parts)."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMS = (("fp8", "raw", "fp8"), ("int8", "raw", "int8"), ("fp8",) * 3, ("int8",) * 3, ("int8",))


def heads(batch: int, tokens: int, count: int, head_dim: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """``[B, n, H, D]``, a view of heads first; rows differ in size by up to 1000, and the first one is zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, count, tokens, head_dim, generator=generator)
    x *= 10.0 ** torch.randint(-1, 3, (batch, count, tokens, 1), generator=generator)
    x[:, :1, :1] = 0
    return x.to(dtype).transpose(1, 2)
