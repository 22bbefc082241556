"""The receiving end of a ring of two, with payloads that arrive when they are told to: what a rank does meanwhile, and how it decodes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from tutti.backend.compression.policy import Preset
from tutti.backend.compression.store import ResidualCall, ResidualStore
from tutti.backend.parallel.exchange import Exchange, HopCodec, Label, Move, Parcel, RawCodec, Value
from tutti.backend.parallel.mesh import Axis
from tutti.backend.parallel.pending import Pending
from tutti.backend.parallel.residual import ResidualHops
from tutti.backend.parallel.transport import DirectTransport, Message

from tests.support.meshes import single_rank_mesh

DEADLINE_S = 20
CPU = torch.device("cpu")
PLENTY = 2**30


class GatedLink(DirectTransport):
    """A stand-in: what is in ``payloads`` arrives, one payload a lane, when the gate is opened."""

    def __init__(self) -> None:
        super().__init__("gloo")
        self.gate = threading.Event()
        self.payloads: list[Tensor] = []
        self.failure: Exception | None = None

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        self.received = [message.tensor for message in received]
        return self

    def wait(self) -> None:
        assert self.gate.wait(DEADLINE_S)
        if self.failure is not None:
            raise self.failure
        for landing, payload in zip(self.received, self.payloads, strict=True):
            landing.copy_(payload)


class InPlace(ResidualHops):
    """Opens nothing ahead: what opening ahead is compared with."""

    def decoder(self, landing: Tensor, label: Label) -> None:  # type: ignore[override]
        return None

    def decode(self, payload: Tensor, landing: Tensor, label: Label) -> Value:
        return ResidualHops.decoder(self, landing, label)(payload)


class Receiver:
    """Place 1 of two; it knows only what place 0 has sent it."""

    def __init__(self, link: DirectTransport, device: torch.device = CPU, *, limit_bytes: int = PLENTY) -> None:
        self.link = link
        self.store = ResidualStore(device, limit_bytes)
        ring = Axis(ranks=(0, 1), index=1, group=cast(ProcessGroup, object()))
        self._mesh = replace(single_rank_mesh(), device=device, transport=link, ring=ring)

    def hop(
        self, preset: Preset, values: Sequence[Tensor], hops: Callable[[ResidualCall, int], HopCodec]
    ) -> list[Parcel]:
        """Begin to receive values like these ``[2, B, n, H, D]``, one a lane, in a call of its own."""
        call = self.store.begin_call("t", 0, preset, largest_bytes=0)
        assert call is not None
        codec = hops(call, 1)
        exchange = Exchange(self._mesh, RawCodec(), codec)
        return exchange.hop(
            [
                Move(
                    parcel=exchange.pack(torch.zeros_like(value), lane),
                    shift=1,
                    landing=codec.landing(value, value.shape),
                )
                for lane, value in enumerate(values)
            ]
        )


class Sender:
    """Place 0."""

    def __init__(self, device: torch.device = CPU, *, limit_bytes: int = PLENTY) -> None:
        self.store = ResidualStore(device, limit_bytes)

    def payloads(self, preset: Preset, values: Sequence[Tensor]) -> list[Tensor]:
        """Of one value a lane, in a call of its own."""
        call = self.store.begin_call("t", 0, preset, largest_bytes=0)
        assert call is not None
        return [ResidualHops(call, 1).encode(value, Label(0, lane))[0] for lane, value in enumerate(values)]


def hashes_from(origin: int, store: ResidualStore) -> dict[object, int]:
    """What a store knows of one place, by channel."""
    return {place: value for place, value in store.hashes("t").items() if place[1][1][2] == origin}  # type: ignore[index]
