"""Parcels opened ahead on a GPU: the same bits as in place while the current stream is busy and its memory in demand; and decoded beside an attention."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from tutti.backend.compression.policy import Preset
from tutti.backend.compression.state import StateForm
from tutti.backend.parallel import ahead
from tutti.backend.parallel.pending import Pending
from tutti.backend.parallel.residual import ResidualHops
from tutti.backend.parallel.transport import DirectTransport, Message

from tests.support.bits import same_bits_or_nan
from tests.support.gated_ring import PLENTY, InPlace, Receiver, Sender, hashes_from

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs an NVIDIA GPU: `pytest tests/unit/parallel -m gpu` on a machine with one",
    ),
]
PRESETS = [
    *(Preset(name=name, key="key-int8", residual=name) for name in ("binary", "int4", "low-rank")),
    Preset(name="order 2", key="key-int4", residual="quaternary", form=StateForm(order=2, delayed_scales=True)),
    Preset(name="8-bit base", key="key-int8", residual="int8", form=StateForm(int8_base=True)),
]
KINDS = (ResidualHops, InPlace)
SHORT_CYCLES, LONG_CYCLES = 10**7, 4 * 10**9
"""Some milliseconds and some seconds of any GPU."""


class StreamLink(DirectTransport):
    """A stand-in for NCCL: a stream of its own brings the payloads when it has waited for the current one, and who waits for it is the current stream."""

    def __init__(self) -> None:
        super().__init__("nccl")
        self.payloads: list[Tensor] = []
        self._stream = torch.cuda.Stream()

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for message, payload in zip(received, self.payloads, strict=True):
                message.tensor.copy_(payload)
        self._over = self._stream.record_event()
        return self

    def wait(self) -> None:
        torch.cuda.current_stream().wait_event(self._over)


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def values(step: int) -> list[Tensor]:
    """Keys and values ``[2, B, n, H, D]`` that move, of two lanes."""
    start, motion = torch.randn(2, 2, 2, 1, 257, 6, 64, generator=torch.Generator().manual_seed(3))
    return list((start + 0.2 * step * motion).bfloat16().cuda())


def churn(like: Sequence[Tensor]) -> None:
    """Write into whatever memory of such sizes the current stream thinks is free."""
    for tensor in like:
        for _ in range(4):
            torch.full_like(tensor, torch.nan)


@pytest.mark.parametrize("limit_bytes", [PLENTY, 1], ids=["kept", "no room: every value has memory of its own"])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_values_and_bases_are_the_same_bits_as_those_of_parcels_opened_in_place(
    preset: Preset, limit_bytes: int
) -> None:
    sender = Sender(device(), limit_bytes=limit_bytes)
    receivers = {kind: Receiver(StreamLink(), device(), limit_bytes=limit_bytes) for kind in KINDS}
    for step in range(5):
        current, payloads, given = values(step), sender.payloads(preset, values(step)), []
        for kind, receiver in receivers.items():
            receiver.link.payloads = payloads
            found = []
            parcels = receiver.hop(preset, current, kind)
            torch.cuda._sleep(SHORT_CYCLES)  # the attention to the chunk before
            while parcels:
                parts = parcels.pop(0).open_parts()
                torch.cuda._sleep(SHORT_CYCLES)  # the attention to this one, which reads it late
                found += [part.clone() for part in parts]
                del parts
                churn(found)
            given.append(found)
        for ours, in_place in zip(*given, strict=True):
            assert same_bits_or_nan(ours.cpu(), in_place.cpu())
        hashes = [hashes_from(0, store) for store in (sender.store, *(end.store for end in receivers.values()))]
        assert hashes[0] == hashes[1] == hashes[2]
        assert len(hashes[0]) == (2 if limit_bytes == PLENTY else 0)
        for receiver in receivers.values():
            seen = receiver.store.look("t")
            assert (seen.mismatches, seen.broken) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_is_decoded_while_the_current_stream_is_busy(kind: type[ResidualHops]) -> None:
    """By events of both streams; the control, opened in place, waits for the attention."""
    sender, link = Sender(device()), StreamLink()
    receiver = Receiver(link, device())
    for step in range(4):
        is_last = step == 3  # whatever is compiled or allocated has been before
        link.payloads = sender.payloads(PRESETS[0], values(step))
        parcels = receiver.hop(PRESETS[0], values(step), kind)
        torch.cuda._sleep(LONG_CYCLES if is_last else SHORT_CYCLES)
        attended = torch.cuda.current_stream().record_event()
        for parcel in parcels:
            parcel.open_parts()
        stream = ahead._side_stream(device()) if kind is ResidualHops else torch.cuda.current_stream()
        stream.record_event().synchronize()
        if is_last:
            assert attended.query() is (kind is InPlace)
            torch.cuda.synchronize()
