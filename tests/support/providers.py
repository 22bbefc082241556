"""Attention kernels that are wrong, slow or absent on purpose, for tests of the choice among kernels."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from tutti.backend.parallel.providers import Attended, AttentionProvider, CpuFlash
from tutti.backend.parallel.providers.case import AttentionCase


class ChangedKernel:
    """CpuFlash under another name, with its answer changed."""

    def __init__(
        self,
        name: str,
        change: Callable[[Attended], Attended] = lambda answer: answer,
        *,
        exact: bool = True,
        takes: bool = True,
        delay_s: float = 0.0,
    ) -> None:
        self.name = name
        self.exact = exact
        self.calls = 0
        self._change = change
        self._takes = takes
        self._delay_s = delay_s

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        return self._takes

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        self.calls += 1
        time.sleep(self._delay_s)
        return self._change(CpuFlash()(q, k, v, scale))


def wrong_output() -> AttentionProvider:
    """Its output is half too large for one query of one head of one picture, and right elsewhere."""

    def change(answer: Attended) -> Attended:
        out = answer.out.clone()
        out[-1, -1, -1] *= 1.5
        return Attended(out, answer.lse)

    return ChangedKernel("wrong-output", change)


def wrong_lse() -> AttentionProvider:
    """Its log-sum-exp counts in bits, as some kernels' does."""
    return ChangedKernel("wrong-lse", lambda answer: Attended(answer.out, answer.lse * 1.442695))


def no_lse() -> AttentionProvider:
    """It gives an output only."""
    return ChangedKernel("no-lse", lambda answer: Attended(answer.out, answer.out.new_empty(0)))


def raising() -> AttentionProvider:
    """It cannot run."""

    def change(answer: Attended) -> Attended:
        raise RuntimeError("no kernel image is available\nand more lines")

    return ChangedKernel("raising", change)


def case(
    *,
    dtype: torch.dtype = torch.float32,
    queries: int = 48,
    keys: int = 96,
    needs_lse: bool = True,
    from_exchange: bool = False,
    scale: float = 0.25,
) -> AttentionCase:
    """A small case with odd sizes in everything but the lengths, which are buckets."""
    return AttentionCase(
        dtype=dtype,
        batch=3,
        heads=5,
        head_dim=16,
        queries=queries,
        keys=keys,
        scale=scale,
        needs_lse=needs_lse,
        from_exchange=from_exchange,
    )
