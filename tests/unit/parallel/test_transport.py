"""Which transport carries which tensors."""

from __future__ import annotations

import pytest
import torch
from tutti.backend.errors import BadPlan
from tutti.backend.parallel.transport import choose_transport

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_cpu_ranks_use_gloo() -> None:
    assert choose_transport(None, CPU, 2).name == "gloo"


def test_gpu_ranks_use_nccl_unless_they_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_transport(None, CUDA, 2).name == "nccl"
    assert choose_transport(None, CUDA, 4).name == "gloo-host-staged"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_transport(None, CUDA, 4).name == "nccl"


def test_the_staged_transport_makes_gloo_groups() -> None:
    assert choose_transport("gloo-host-staged", CUDA, 2).backend == "gloo"


@pytest.mark.parametrize(("name", "device"), [("carrier-pigeon", CPU), ("nccl", CPU), ("gloo", CUDA)])
def test_a_transport_that_cannot_carry_the_tensors_is_refused(name: str, device: torch.device) -> None:
    with pytest.raises(BadPlan, match="transport"):
        choose_transport(name, device, 2)
