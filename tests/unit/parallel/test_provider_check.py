"""Is a kernel right, and how fast is it? Real kernels pass the check, and each kind of wrong one is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from tutti.backend.parallel.plan import SCHEDULES
from tutti.backend.parallel.providers import Attended, AttentionProvider, CpuFlash, MathFallback
from tutti.backend.parallel.providers.cache import TimesCache
from tutti.backend.parallel.providers.case import draw
from tutti.backend.parallel.providers.check import TOLERANCES, fault, time_ms
from tutti.backend.parallel.providers.trials import Trials

from tests.support.providers import ChangedKernel, case, no_lse, raising, wrong_lse, wrong_output

CPU = torch.device("cpu")
REAL = [CpuFlash(), MathFallback()]


@pytest.mark.parametrize("provider", REAL, ids=lambda provider: provider.name)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("needs_lse", [False, True])
def test_real_kernels_pass_the_check(
    provider: AttentionProvider, dtype: torch.dtype, exchanged: bool, needs_lse: bool
) -> None:
    asked = case(dtype=dtype, from_exchange=exchanged, needs_lse=needs_lse)
    assert fault(provider, *draw(asked, CPU), asked.scale, needs_lse=needs_lse) is None


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        (wrong_output(), "its output is off by"),
        (wrong_lse(), "its log-sum-exp is off by"),
        (no_lse(), "no log-sum-exp"),
        (raising(), "RuntimeError: no kernel image is available"),
        (ChangedKernel("half", lambda a: a._replace(out=a.out.half())), "answers torch.float16"),
        (ChangedKernel("nan", lambda a: a._replace(out=a.out * float("nan"))), "off by nan"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_wrong_kernel_is_found_out_and_the_reason_said(provider: AttentionProvider, reason: str) -> None:
    found = fault(provider, *draw(case(), CPU), 0.25, needs_lse=True)
    assert found is not None
    assert reason in str(found)
    assert "\n" not in str(found)


def test_a_kernel_that_ignores_the_scale_is_found_out() -> None:
    assert fault(CpuFlash(), *draw(case(), CPU), 0.25, needs_lse=False) is None

    class OwnScale(CpuFlash):
        def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float):  # type: ignore[no-untyped-def]
            return super().__call__(q, k, v, 0.3)

    assert "output is off" in str(fault(OwnScale(), *draw(case(), CPU), 0.25, needs_lse=False))


@pytest.mark.parametrize("wrong", [wrong_lse(), no_lse()], ids=lambda provider: provider.name)
def test_a_log_sum_exp_counts_only_where_a_ring_needs_it(wrong: AttentionProvider) -> None:
    assert fault(wrong, *draw(case(), CPU), 0.25, needs_lse=False) is None


def test_a_time_is_that_of_one_call() -> None:
    asked = case()
    slow = ChangedKernel("slow", delay_s=0.01)
    assert 10 <= time_ms(slow, *draw(asked, CPU), asked.scale) < 100  # milliseconds, not seconds and not all runs


class WrongFor(ChangedKernel):
    """Right but for tensors of one kind."""

    def __init__(self, name: str, kind: Callable[[Tensor, Tensor], bool]) -> None:
        super().__init__(name)
        self._kind = kind

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
        answer = super().__call__(q, k, v, scale)
        return answer._replace(out=answer.out * 1.5) if self._kind(q, k) else answer


WRONG_FOR = {
    "gathered keys": (
        WrongFor("gathered", lambda q, k: k.stride(2) == 2 * 3 * 5 * 16),
        {("allgather", True), ("allgather", False)},
    ),
    "three heads": (
        WrongFor("three", lambda q, k: q.shape[1] == 3),
        {("bidirectional", True), ("bidirectional", False)},
    ),
    "two heads": (WrongFor("two", lambda q, k: q.shape[1] == 2), {("bidirectional", True), ("bidirectional", False)}),
    "keys as they arrived": (WrongFor("arrived", lambda q, k: k.stride(2) == 3 * 3 * 5 * 16), {("tokenring", True)}),
    "exchanged queries": (
        WrongFor("queries", lambda q, k: q.stride(2) == 3 * 3 * 5 * 16),
        {(schedule, True) for schedule in SCHEDULES},
    ),
    "dense queries of all heads": (
        WrongFor("dense", lambda q, k: q.stride(2) == 5 * 16),
        {(schedule, False) for schedule in SCHEDULES} | {("tokenring", True)},
    ),
}


@pytest.mark.parametrize("kind", WRONG_FOR)
def test_a_kernel_that_is_wrong_only_for_what_some_schedule_hands_over_is_off_there(kind: str) -> None:
    kernel, expected = WRONG_FOR[kind]
    trials = Trials((kernel,), CPU, TimesCache(None, {}))
    asked = [(schedule, exchanged) for schedule in SCHEDULES for exchanged in (False, True)]
    off = {
        (schedule, exchanged)
        for schedule, exchanged in asked
        if not trials.right(replace(case(from_exchange=exchanged), schedule=schedule))
    }
    assert off == expected
