"""torch's own attention kernels, and a plain fp32 formula where no kernel takes the input."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import Attended

aten = torch.ops.aten


class CpuFlash:
    """torch's flash attention for CPU (what ``scaled_dot_product_attention`` runs there)."""

    name = "torch-cpu-flash"
    exact = True

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        return device.type == "cpu" and dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)
        return Attended(out, lse)


def takes_16_bit(device: torch.device, dtype: torch.dtype, head_dim: int, *, most: int = 256) -> bool:
    """What kernels of FlashAttention's kind take: Ampere or later, 16-bit numbers, head dimensions in steps of 8 up to ``most``."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return head_dim <= most and head_dim % 8 == 0 and torch.cuda.get_device_capability(device) >= (8, 0)


class CudaFlash:
    """torch's FlashAttention 2 for 16-bit CUDA tensors."""

    name = "torch-cuda-flash"
    exact = True

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        return takes_16_bit(device, dtype, head_dim)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, scale=scale)
        return Attended(out, lse)


class CudaCudnn:
    """cuDNN's fused attention for 16-bit CUDA tensors: on Hopper and later it uses instructions that FlashAttention 2 does not."""

    name = "torch-cuda-cudnn"
    exact = True

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        return takes_16_bit(device, dtype, head_dim, most=128)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, scale=scale)
        # cuDNN keeps the summed dimension, as one.
        return Attended(out, lse.reshape(q.shape[:3]))


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
