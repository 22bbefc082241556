"""Local attention with its log-sum-exp: torch's own kernels, and a plain fp32 formula where no kernel takes the input.

A ring needs both the output and, per query and head, ``lse = log(sum_j exp(scale * q . k_j))``, so that partial results over
disjoint keys can be merged exactly. Layouts follow torch: ``[batch, heads, tokens, head_dim]``, any strides with a dense last dimension.
The choice depends on device, dtype and head_dim only: it is the same on every rank.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import InternalError

aten = torch.ops.aten


class Attended(NamedTuple):
    """The result of one local attention."""

    out: Tensor
    """``[batch, heads, queries, head_dim]`` in the dtype of the query."""
    lse: Tensor
    """``[batch, heads, queries]`` float32 (float64 for float64 input)."""


class AttentionProvider(Protocol):
    """One implementation of softmax(scale * q k^T) v without a mask."""

    name: str
    exact: bool
    """Whether it computes the formula up to the rounding of its dtype; quantised or sparse attention does not."""

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        """Whether the kernel accepts such tensors."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        """Attend; there is at least one query and one key."""


class CpuFlash:
    """torch's flash attention for CPU (what ``scaled_dot_product_attention`` runs there)."""

    name = "torch-cpu-flash"
    exact = True

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        return device.type == "cpu" and dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)
        return Attended(out, lse)


class CudaFlash:
    """torch's FlashAttention 2 for 16-bit CUDA tensors."""

    name = "torch-cuda-flash"
    exact = True

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
            return False
        # FlashAttention 2 needs Ampere, and head dimensions in steps of 8.
        return head_dim <= 256 and head_dim % 8 == 0 and torch.cuda.get_device_capability(device) >= (8, 0)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, scale=scale)
        return Attended(out, lse)


class CudaEfficient:
    """torch's memory-efficient attention (CUTLASS): the kernel for float32 on CUDA, and for older GPUs."""

    name = "torch-cuda-efficient"
    exact = True

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        supported = (torch.float32, torch.bfloat16, torch.float16)
        # Rows must start on 16 bytes.
        return device.type == "cuda" and dtype in supported and (head_dim * dtype.itemsize) % 16 == 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, False, scale=scale)
        # The kernel pads the query dimension of its log-sum-exp to a multiple of 32.
        return Attended(out, lse[:, :, : q.shape[2]])


class MathFallback:
    """The formula itself in float32 (float64 stays): slow, quadratic in memory, for inputs that no kernel takes."""

    name = "math"
    exact = True

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        return dtype.is_floating_point

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        precise = torch.promote_types(q.dtype, torch.float32)
        scores = (q.to(precise) * scale) @ k.to(precise).transpose(-1, -2)
        lse = scores.logsumexp(-1)
        out = (scores - lse.unsqueeze(-1)).exp() @ v.to(precise)
        return Attended(out.to(q.dtype), lse)


PROVIDERS: tuple[AttentionProvider, ...] = (CpuFlash(), CudaFlash(), CudaEfficient(), MathFallback())
"""In order of preference."""


@functools.cache
def choose_provider(device: torch.device, dtype: torch.dtype, head_dim: int) -> AttentionProvider:
    """The first exact provider that takes such tensors."""
    for provider in PROVIDERS:
        if provider.exact and provider.takes(device, dtype, head_dim):
            return provider
    raise InternalError(f"No exact attention takes {dtype} tensors of head_dim {head_dim} on {device.type}.")
