"""Is a kernel right, and how fast is it? Both on tensors of the job's own shape, before the job uses it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from .attention import Attended, AttentionProvider
from .kernels import MathFallback
from .reason import Reason, reason_of

SAMPLED_ROWS: Final = 64
"""Queries that are compared, of two heads of the last picture: the reference writes all of their scores to memory."""
WARM_UPS: Final = 3
RUNS: Final = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far a kernel may be from the formula in float64."""

    out: float
    """max|a - b| / max|b|"""
    lse: float
    """max|a - b|: an error of x in a log-sum-exp is a relative error of x in a merged part's weight."""


TOLERANCES: Final = {
    # Weights and output are each rounded to the dtype once (2^-9, 2^-11, 2^-24): ten times that, for other orders of summing.
    torch.bfloat16: Tolerance(out=2e-2, lse=1e-3),
    torch.float16: Tolerance(out=5e-3, lse=1e-3),
    # Sums are float32 in all three, and 1e-4 is what 30,000 summands of one sign can lose in the worst order.
    torch.float32: Tolerance(out=1e-5, lse=1e-4),
    torch.float64: Tolerance(out=1e-10, lse=1e-10),
}


def fault(
    provider: AttentionProvider, q: Tensor, k: Tensor, v: Tensor, scale: float, *, needs_lse: bool
) -> Reason | None:
    """Why this kernel must not be used for such tensors ``[B, H, tokens, D]``; None when it is right."""
    try:
        got = provider(q, k, v, scale)
        if got.out.shape != q.shape or got.out.dtype != q.dtype:
            return Reason(f"it answers {got.out.dtype}{list(got.out.shape)} to {q.dtype}{list(q.shape)}")
        if needs_lse and got.lse.numel() == 0:
            return Reason("it gives no log-sum-exp, which a ring needs")
        return _disagreement(got, q, k, v, scale, needs_lse=needs_lse)
    except Exception as error:  # a kernel that somebody else wrote, in a version that nobody here has seen
        return reason_of(error)


def _disagreement(got: Attended, q: Tensor, k: Tensor, v: Tensor, scale: float, *, needs_lse: bool) -> Reason | None:
    allowed = TOLERANCES[q.dtype]
    rows = torch.linspace(0, q.shape[2] - 1, min(SAMPLED_ROWS, q.shape[2]), device=q.device).long()
    heads = slice(max(0, q.shape[1] - 2), None)
    precise = torch.float64  # TF32, which a process may allow for float32, would spoil the reference
    sampled_q, sampled_k, sampled_v = (x[-1:, heads].to(precise) for x in (q[:, :, rows], k, v))
    expected = MathFallback()(sampled_q, sampled_k, sampled_v, scale)
    out = got.out[-1:, heads][:, :, rows].to(precise)
    error = float((out - expected.out).abs().max() / expected.out.abs().max())
    if not error <= allowed.out:  # a NaN is an error too
        return Reason(f"its output is off by {error:.1e} of the largest value ({allowed.out:.0e} allowed)")
    if not needs_lse:
        return None
    error = float((got.lse[-1:, heads][:, :, rows].to(precise) - expected.lse).abs().max())
    if error <= allowed.lse:
        return None
    return Reason(f"its log-sum-exp is off by {error:.1e} ({allowed.lse:.0e} allowed)")


def time_ms(provider: AttentionProvider, q: Tensor, k: Tensor, v: Tensor, scale: float) -> float:
    """The median time of a call in milliseconds, by CUDA events on a GPU."""
    for _ in range(WARM_UPS):
        provider(q, k, v, scale)
    return statistics.median(_once_ms(provider, q, k, v, scale) for _ in range(RUNS))


def _once_ms(provider: AttentionProvider, q: Tensor, k: Tensor, v: Tensor, scale: float) -> float:
    if q.device.type != "cuda":
        started = time.perf_counter()
        provider(q, k, v, scale)
        return 1000 * (time.perf_counter() - started)
    with torch.cuda.device(q.device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        provider(q, k, v, scale)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))
