"""Which codec a plan gives, and where it is refused."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.errors import BadPlan
from tutti.backend.parallel.codecs import codec_of
from tutti.backend.parallel.plan import CODECS, Plan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", CODECS)
def test_a_plan_gives_the_codec_that_it_names(name: str) -> None:
    plan = Plan(ulysses=2, codec=name)
    codec = codec_of(plan, CPU)
    assert codec.name == name
    assert codec.exact == plan.exact == (name == "raw")


@pytest.mark.parametrize("name", CODECS)
def test_what_comes_back_is_exact_where_the_codec_says_so(name: str) -> None:
    codec = codec_of(Plan(ulysses=2, codec=name), CPU)
    q, k, v = (torch.randn(2, 5, 4, 24, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    kept = {"raw": "qkv", "fp8": "k", "int8": "k"}.get(name, "")
    for what, x, back in zip("qkv", (q, k, v), codec.unpack(codec.pack((q, k, v), 2), (q, k, v)), strict=True):
        assert torch.equal(x, back) == (what in kept)
        assert (x - back).abs().max() <= x.abs().max() * 16 / 448
    (out,) = codec.unpack(codec.pack((v,), 1), (v,))
    assert torch.equal(out, v) == codec.exact


def test_a_gpu_without_8_bit_floats_is_told_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    for name in ("fp8", "fp8-all"):
        with pytest.raises(BadPlan, match="Take int8"):
            codec_of(Plan(ulysses=2, codec=name), CUDA)
    assert codec_of(Plan(ulysses=2, codec="int8-all"), CUDA).name == "int8-all"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert codec_of(Plan(ulysses=2, codec="fp8"), CUDA).name == "fp8"
