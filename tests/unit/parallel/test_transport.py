"""Which transport carries which tensors, in which order gloo is given what it is to do, and who may wait."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tutti.backend.errors import BadPlan
from tutti.backend.parallel import transport
from tutti.backend.parallel.transport import DirectTransport, Message, choose_transport

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


class RecordedGloo:
    """A stand-in for a gloo group of three ranks, of which this is number 1: notes what it is given, in order, and is done at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[str, int, int]] = []
        """Operation, bytes, other end."""
        monkeypatch.setattr(dist, "P2POp", lambda operation, tensor, peer, group: (operation, tensor, peer))
        monkeypatch.setattr(dist, "batch_isend_irecv", self._batch)
        monkeypatch.setattr(dist, "get_rank", lambda group=None: 1)
        monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1, 2])

    def _batch(self, operations: list[Any]) -> list[None]:
        self.given += [
            ("receive" if operation is dist.irecv else "send", tensor.numel(), peer)
            for operation, tensor, peer in operations
        ]
        return []


GROUP: Any = None


def test_over_gloo_a_hop_receives_before_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent first, a payload holds up the word that this rank is ready to receive: both ways of a link are used in turn."""
    gloo, carrier = RecordedGloo(monkeypatch), DirectTransport("gloo")
    carrier.hop([Message(torch.zeros(5, 1, dtype=torch.uint8), 0)], [Message(torch.zeros(3, 2), 2)], GROUP).wait()
    assert gloo.given == [("receive", 5, 0), ("send", 24, 2)]
    assert carrier.hops.count == 0


def test_over_gloo_an_all_to_all_is_messages_received_first_and_nothing_travels_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gloo, carrier = RecordedGloo(monkeypatch), DirectTransport("gloo")
    received, sent = torch.zeros(6, 2, dtype=torch.uint8), torch.arange(12, dtype=torch.uint8).view(6, 2)
    carrier.all_to_all(received, sent, [2, 3, 1], [0, 3, 3], GROUP)
    assert gloo.given == [("receive", 4, 0), ("receive", 2, 2), ("send", 6, 2)], "nothing to rank 0"
    assert received[2:5].equal(sent[:3]), "its own"
    assert (carrier.sent_bytes, carrier.hops.count) == (6, 0)


def test_an_all_to_all_that_failed_is_an_open_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it could meet a later one: the group ends."""
    RecordedGloo(monkeypatch)

    def fail(operations: list[Any]) -> list[None]:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(dist, "batch_isend_irecv", fail)
    carrier = DirectTransport("gloo")
    with pytest.raises(RuntimeError, match="closed"):
        carrier.all_to_all(torch.zeros(3, 1), torch.zeros(3, 1), [1, 1, 1], [1, 1, 1], GROUP)
    assert carrier.hops.count == 1


def test_who_waits_for_a_staged_hop_waits_for_its_last_byte() -> None:
    """Two threads may: one that decodes ahead, and one that hands the payload on."""
    copies, may_go_on = threading.Event(), threading.Event()

    class SlowTensor:
        """Takes its time to be filled."""

        def copy_(self, landing: object) -> None:
            copies.set()
            assert may_go_on.wait(10)

    class Over:
        def wait(self) -> None:
            """It is."""

    staged = transport._Landing(Over(), [(SlowTensor(), torch.zeros(1))])  # type: ignore[list-item]
    first, second = threading.Thread(target=staged.wait), threading.Thread(target=staged.wait)
    first.start()
    assert copies.wait(10)
    second.start()
    second.join(0.2)
    assert second.is_alive(), "not beside the copy"
    may_go_on.set()
    first.join(10)
    second.join(10)
    assert not second.is_alive()
