"""NCCL, as far as one GPU shows it: every primitive over a group of one rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.ranks import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU: run `python3 install.py test` on a machine with one"
    ),
    pytest.mark.timeout(300),
]


def test_nccl_carries_every_dtype_in_a_group_of_one(tmp_path: Path) -> None:
    arguments = {"device": "cuda:0"}
    (result,) = run_ranks("tests.distributed.nccl_rank", 1, tmp_path / "ranks", arguments, timeout_s=250)
    for name, tensor in result.tensors.items():
        dtype = name.rpartition(" ")[0]
        assert torch.equal(tensor, result.tensors[f"{dtype} sent"])
