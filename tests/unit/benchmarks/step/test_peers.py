"""Stand-in peers: buffers are filled completely, and counted as a real transport counts. (Against a real one: tests/distributed/test_step.py.)"""

from __future__ import annotations

import pytest
import torch
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.transport import Message
from tutti.benchmarks.step.peers import fake_mesh

CPU = torch.device("cpu")
NAN = float("nan")


@pytest.mark.parametrize(("sent", "received"), [(5, 5), (5, 3), (3, 7), (2, 9), (0, 4), (4, 0)])
def test_a_hop_fills_every_number_of_its_buffer(sent: int, received: int) -> None:
    mesh, peers = fake_mesh(Plan(ring=3), CPU)
    landing = torch.full((2, received, 3), NAN)
    group = mesh.ring.process_group
    peers.hop([Message(landing, 2)], [Message(torch.ones(2, sent, 3), 1)], group).wait()
    assert landing.isfinite().all()
    assert peers.sent_bytes == 2 * sent * 3 * 4


def test_an_all_to_all_fills_its_buffer_and_counts_what_leaves() -> None:
    mesh, peers = fake_mesh(Plan(ulysses=3), CPU)
    landing = torch.full((7, 5), NAN, dtype=torch.bfloat16)
    sent = torch.ones(6, 5, dtype=torch.bfloat16)
    peers.all_to_all(landing, sent, [3, 3, 1], [2, 3, 1], mesh.ulysses.process_group)
    assert landing.isfinite().all()
    assert peers.sent_bytes == (3 + 1) * 5 * 2  # rank 0's own two rows stay


def test_gathers_and_broadcasts_go_to_all_others() -> None:
    mesh, peers = fake_mesh(Plan(ring=2, ulysses=2), CPU)
    gathered = torch.full((4, 3), NAN)
    peers.all_gather(gathered, torch.ones(3), mesh.sequence.process_group)
    assert gathered.eq(1).all()
    peers.broadcast(torch.ones(2), 0, mesh.sequence.process_group)
    assert [(transfer.kind, transfer.sent_bytes) for transfer in peers.transfers] == [
        ("all-gather", 36),
        ("broadcast", 24),
    ]


@pytest.mark.parametrize("plan", [Plan(ulysses=4), Plan(ring=4), Plan(ring=2, ulysses=2)], ids=str)
def test_the_mesh_is_that_of_the_first_rank(plan: Plan) -> None:
    mesh, _ = fake_mesh(plan, CPU)
    assert (mesh.rank, mesh.world_size) == (0, plan.world_size)
    assert (mesh.ulysses.size, mesh.ring.size) == (plan.ulysses, plan.ring)
