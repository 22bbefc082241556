"""The time of a step, and on a GPU the idle time between its kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch


def step_s(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one step: by CUDA events on a GPU, by the wall clock elsewhere."""
    if device.type != "cuda":
        started = time.perf_counter()
        step()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One step as the GPU saw it."""

    kernels: int
    busy_ms: float
    """Some kernel ran."""
    gaps_ms: float
    """None ran, between the first and the last."""

    @classmethod
    def of(cls, intervals_us: Iterable[tuple[float, float]]) -> Timeline:
        """From each kernel's begin and end in microseconds, in any order; kernels may overlap."""
        ordered = sorted(intervals_us)
        busy = gaps = 0.0
        end = ordered[0][0] if ordered else 0.0
        for begins, ends in ordered:
            gaps += max(0.0, begins - end)
            busy += max(0.0, ends - max(begins, end))
            end = max(end, ends)
        return cls(kernels=len(ordered), busy_ms=busy / 1000, gaps_ms=gaps / 1000)


def timeline(step: Callable[[], object], device: torch.device) -> Timeline:
    """Record one step with torch's profiler. A GPU only."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize(device)
    # Annotated regions are listed among the kernels and span the gaps.
    on_gpu = [
        event for event in recorded.events() or () if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    return Timeline.of((event.time_range.start, event.time_range.end) for event in on_gpu)
