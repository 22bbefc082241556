"""``tutti serve --compile``: what a client hears while the ranks compile, what status says (of attention too), and that the next job compiles nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tutti.backend.client import Client
from tutti.backend.wire.codec import Received
from tutti.backend.wire.messages import Progress
from tutti.backend.worker.tensors import to_torch, to_wire

from tests.support.daemon import Daemon, private_state_dir, running
from tests.support.parity import FP32_TOLERANCE, relative_error
from tests.support.rank_leg import sample_of, sample_tensors

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]


@pytest.fixture(scope="module")
def compiling(models: Path) -> Iterator[Daemon]:
    with private_state_dir() as state_dir, running(models, state_dir, ranks=2, arguments=("--compile", "blocks")) as up:
        yield up


def draw(client: Client) -> tuple[torch.Tensor, list[Progress]]:
    """The same job every time: its latent, and what was told on the way."""
    inputs = sample_tensors()
    told: list[Progress] = []

    def hear(received: Received) -> None:
        if isinstance(received.message, Progress):
            told.append(received.message)

    wire = {name: to_wire(tensor) for name, tensor in inputs.items()}
    latent = to_torch(client.sample(sample_of(inputs), wire, hear).tensors["latent"]).clone()
    return latent, told


def graphs(daemon: Daemon) -> int:
    """How many graphs status speaks of."""
    found = re.match(r"blocks, (\d+) graphs? in", daemon.status().compile)
    assert found, daemon.status().compile
    return int(found[1])


def test_the_first_job_says_that_it_compiles_and_the_next_one_compiles_nothing(compiling: Daemon, models: Path) -> None:
    assert compiling.status().compile == "blocks", "before the first job: as the daemon was told"
    assert compiling.status().attention == ""
    with compiling.client() as client:
        latent, told = draw(client)
        progress = [(message.step, message.steps) for message in told if message.phase == "compiling"]
        assert progress[:2] == [(1, 2), (2, 2)], "a kind of block each"
        assert "once for pictures of this size" in next(m.text for m in told if m.phase == "compiling")
        assert told[-1].text.endswith("2 ranks, compiled")
        after_first = graphs(compiling)
        again, told = draw(client)
    assert [message for message in told if message.phase == "compiling"] == []
    assert graphs(compiling) == after_first == 2
    assert compiling.status().attention == "torch-cpu-flash", "inside of graphs too"
    assert torch.equal(again, latent)
    with private_state_dir() as state_dir, running(models, state_dir, ranks=2) as eager, eager.client() as client:
        expected, told = draw(client)
        assert told[-1].text.endswith("2 ranks"), "auto leaves a CPU eager"
        assert eager.status().compile == "off: auto compiles on GPUs only"
        assert eager.status().attention == "torch-cpu-flash"
    assert 0 < relative_error(latent, expected) <= FP32_TOLERANCE, "compiled kernels round otherwise"


def test_compiled_code_lies_in_the_state_directory_by_version(compiling: Daemon) -> None:
    with compiling.client() as client:
        draw(client)
    folders = list((compiling.state_dir / "compiled").iterdir())
    assert [f"torch-{torch.__version__}" in folder.name for folder in folders] == [True]
    assert (folders[0] / "fxgraph").is_dir()
    assert compiling.state_dir.stat().st_mode & 0o077 == 0
