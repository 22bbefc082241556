"""The step benchmark on one NVIDIA GPU: one rank's share, eager, compiled and with CUDA graphs, with launch gaps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tutti.benchmarks.step.__main__ import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs an NVIDIA GPU: run `python3 install.py test -- tests/gpu/test_step_on_gpu.py` on a machine that has one",
    ),
]


@pytest.mark.parametrize("plan", ["ulysses=2", "ring=2"])
def test_a_share_runs_eager_compiled_and_with_graphs(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.jsonl"
    asked = ["--model", "flux-512", "--device", "cuda", "--shard", "2", "--plan", plan, "--rounds", "3", "--gaps"]
    assert main([*asked, "--json", str(file)]) == 0
    assert "did not run" not in capsys.readouterr().out
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    by_name = {(line["case"], line["metric"]): line["value"] for line in lines}
    for label in ("eager", "compiled", "compiled with graphs"):
        assert by_name[f"{plan} {label}", "compute of one rank, measured"] > 0
        assert by_name[f"{plan} {label}", "kernels in one step"] > 0
