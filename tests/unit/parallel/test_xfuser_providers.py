"""xfuser's attention functions as providers, with a table of functions of their signature: xfuser itself needs a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from tutti.backend.errors import InternalError
from tutti.backend.parallel.providers import CpuFlash, from_xfuser
from tutti.backend.parallel.providers.case import draw
from tutti.backend.parallel.providers.check import fault
from tutti.backend.parallel.providers.from_xfuser import XfuserAttention

from tests.support.providers import case

CPU = torch.device("cpu")
SCALE = 16**-0.5


def with_lse(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, is_causal: bool) -> tuple[Tensor, Tensor | None]:
    assert not dropout_p
    assert not is_causal
    return CpuFlash()(q, k, v, SCALE)


def without_lse(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, is_causal: bool) -> tuple[Tensor, Tensor | None]:
    return CpuFlash()(q, k, v, SCALE).out, None


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_xfuser, "_functions", lambda: {"FLASH": with_lse, "SAGE": without_lse})


def test_a_function_gives_output_and_log_sum_exp_in_our_layout() -> None:
    assert fault(XfuserAttention("FLASH", exact=True), *draw(case(), CPU), SCALE, needs_lse=True) is None


def test_a_function_without_a_log_sum_exp_serves_no_ring() -> None:
    sage = XfuserAttention("SAGE", exact=False)
    assert fault(sage, *draw(case(), CPU), SCALE, needs_lse=False) is None
    assert "no log-sum-exp" in str(fault(sage, *draw(case(), CPU), SCALE, needs_lse=True))


def test_another_scale_and_a_missing_function_are_refused() -> None:
    q, k, v = draw(case(), CPU)
    with pytest.raises(InternalError, match="scales by head_dim"):
        XfuserAttention("FLASH", exact=True)(q, k, v, 0.3)
    with pytest.raises(InternalError, match="no FLASH_3"):
        XfuserAttention("FLASH_3", exact=True)(q, k, v, SCALE)


def test_names_are_those_that_people_know() -> None:
    assert XfuserAttention("FLASH_3", exact=True).name == "xfuser-flash-3"
