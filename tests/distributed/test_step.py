"""Stand-in peers of the step benchmark against real gloo ranks: the same transfers, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tutti.backend.parallel.plan import Plan
from tutti.benchmarks.step.contestants import our_step
from tutti.benchmarks.step.networks import draw_call, draw_network
from tutti.benchmarks.step.peers import fake_mesh

from tests.support.ranks import run_ranks
from tests.support.step_models import odd_flux

CPU = torch.device("cpu")
PLANS = {2: ["ulysses=2", "ring=2"], 4: ["ring=2,ulysses=2"]}


@pytest.mark.parametrize("world_size", list(PLANS))
def test_stand_in_peers_get_as_many_bytes_as_real_ones(world_size: int, tmp_path: Path) -> None:
    plans = PLANS[world_size]
    first, *_ = run_ranks("tests.distributed.step_ranks", world_size, tmp_path / "ranks", {"plans": plans})
    model = odd_flux()
    for plan in plans:
        mesh, peers = fake_mesh(Plan.parse(plan), CPU)
        our_step(model, draw_network(model, CPU), draw_call(model, CPU), mesh, "off")()
        assert peers.sent_bytes == first.facts[plan], plan
        assert peers.sent_bytes > 0
