"""The registry of schedules, and parcels on their way; what schedules compute is shown on real ranks (test_schedules of tests/distributed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from tutti.backend.parallel.exchange import Exchange, Label, Move, RawCodec, Value
from tutti.backend.parallel.mesh import Axis
from tutti.backend.parallel.pending import Pending
from tutti.backend.parallel.plan import SCHEDULES
from tutti.backend.parallel.schedules import REGISTRY
from tutti.backend.parallel.transport import DirectTransport, Message

from tests.support.meshes import single_rank_mesh


def test_every_schedule_that_a_plan_can_name_is_there() -> None:
    assert tuple(REGISTRY) == SCHEDULES
    assert len(set(REGISTRY.values())) == len(SCHEDULES)


class Delivery:
    """A hop whose bytes come when it is waited for."""

    def __init__(self, received: Sequence[Message]) -> None:
        self.received = received
        self.waits = 0

    def wait(self) -> None:
        self.waits += 1
        for number, message in enumerate(self.received):
            message.tensor.fill_(number + 7)


class FakeRing(DirectTransport):
    """Keeps what it is asked to send, and delivers 7, 8, ..."""

    def __init__(self) -> None:
        super().__init__("gloo")
        self.sent: list[list[Message]] = []
        self.after: list[list[Pending]] = []
        self.hops: list[Delivery] = []

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        self.sent.append(list(sent))
        self.after.append(list(after))
        self.hops.append(Delivery(received))
        return self.hops[-1]


class CountingCodec(RawCodec):
    """Raw, and counts."""

    def __init__(self) -> None:
        self.encoded = self.decoded = 0
        self.labels: list[Label] = []

    def encode(self, value: Tensor, label: Label) -> tuple[Tensor, Value]:
        self.encoded += 1
        return super().encode(value, label)

    def decode(self, payload: Tensor, landing: Tensor, label: Label) -> Tensor:
        self.decoded += 1
        self.labels.append(label)
        return payload


def ring_of(transport: FakeRing, codec: RawCodec) -> Exchange:
    """The exchange of rank 5, in the middle of a ring of 3, 5 and 9."""
    ring = Axis(ranks=(3, 5, 9), index=1, group=cast(ProcessGroup, object()))
    return Exchange(replace(single_rank_mesh(), transport=transport, ring=ring), RawCodec(), codec)


def move(exchange: Exchange, value: Tensor, shift: int = 1) -> Move:
    return Move(parcel=exchange.pack(value), shift=shift, landing=torch.empty_like(value))


def test_moves_of_one_hop_share_a_batch_and_go_the_way_of_their_shift() -> None:
    transport = FakeRing()
    exchange = ring_of(transport, RawCodec())
    coming = exchange.hop([move(exchange, torch.zeros(2)), move(exchange, torch.ones(2), shift=-1)])
    assert [[message.rank for message in sent] for sent in transport.sent] == [[9, 3]]
    assert [message.rank for message in transport.hops[0].received] == [3, 9]
    assert [parcel.open().tolist() for parcel in coming] == [[7, 7], [8, 8]]


def test_a_parcel_is_encoded_once_forwarded_unopened_and_decoded_once() -> None:
    transport, codec = FakeRing(), CountingCodec()
    exchange = ring_of(transport, codec)
    (first,) = exchange.hop([move(exchange, torch.zeros(2))])
    (second,) = exchange.hop([Move(parcel=first, shift=1, landing=torch.empty(2))])
    assert transport.after == [[], [transport.hops[0]]]
    assert transport.sent[1][0].tensor is transport.hops[0].received[0].tensor
    assert codec.decoded == 0
    for parcel in (first, first, second):
        parcel.open()
    assert (codec.encoded, codec.decoded) == (1, 2)
    assert [label.origin for label in codec.labels] == [0, 2], (
        "one and two places back in a ring of three, from place 1"
    )
    assert [hop.waits for hop in transport.hops] == [1, 1]


def test_a_parcel_that_has_arrived_goes_on_at_once() -> None:
    transport = FakeRing()
    exchange = ring_of(transport, RawCodec())
    (parcel,) = exchange.hop([move(exchange, torch.zeros(2))])
    parcel.open()
    exchange.hop([Move(parcel=parcel, shift=1, landing=torch.empty(2))])
    assert transport.after == [[], []]


def test_the_owner_of_a_value_opens_it_to_what_it_put_in() -> None:
    value = torch.zeros(2)
    assert ring_of(FakeRing(), CountingCodec()).pack(value).open() is value
