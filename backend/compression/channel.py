"""What always travels together, from one rank to one or more others: some matrices, behind one header.

The header says which transfer of its channel this is, and what the sender's bases were before it: a payload that meets other bases, because one was lost,
came twice, or memory went bad, is found as it is decoded. Nothing waits for the answer. A :class:`Watch` collects it, and the ranks look before the
next call (:mod:`.store`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.base_hash import checksum_of, hash_of
from .codecs import Codec
from .policy import LAYER_GROUPS
from .state import MatrixShape, ResidualState, StateForm

HEADER_WORDS = 2
"""int64: number of the transfer, hash of the bases before it."""
HEADER_BYTES = 8 * HEADER_WORDS
MEASURED_ONE_OF = 8
"""How seldom a channel's error is measured: it takes a pass over the matrix."""
LEAST_ERROR = 1e-6
"""Of a layer group that was measured: 0 says that it was not."""
MOST_ERROR = 1e6
"""What is worse than this is not told apart: errors travel as whole numbers."""
_FIRST_RESIDUAL = 2
"""Number of the transfer behind the first key frame."""
ALIGNMENT = 16
"""Sections of a payload begin at multiples of so many bytes: vector loads, and views as wider numbers."""


class Watch:
    """What happened to payloads since the last look; asked once a call, so that no transfer waits for a device.

    Payloads may be decoded in another thread than they are made in. What is counted on a device is counted on streams that wait for one another.
    """

    def __init__(self, device: torch.device, first_turn: int = 0) -> None:
        """``first_turn``: another one on each rank, so that together they measure a layer more often than each of them does."""
        self._lock = threading.Lock()
        """Of the two counts that decoding adds to."""
        self._mismatches = torch.zeros((), dtype=torch.int64, device=device)
        self._broken = torch.zeros((), dtype=torch.int64, device=device)
        self._energies = torch.zeros(2, LAYER_GROUPS, dtype=torch.float64, device=device)
        """Of what encoding lost, and of what was measured, in each layer group."""
        self._raw_bytes = self._payload_bytes = 0
        self._first_turn = first_turn

    def turn_of(self, group: int) -> int:
        """In which of ``MEASURED_ONE_OF`` transfers the channels of a layer group are measured: all of a layer's in the same call, layers one after the other.

        The first group's turn is the first residual, behind the key frame: of a network of few layers a job of few calls is to know something, too.
        """
        return (_FIRST_RESIDUAL + self._first_turn + group) % MEASURED_ONE_OF

    def sent(self, *, raw_bytes: int, payload_bytes: int) -> None:
        """A payload was made, of so many bytes, for tensors of so many."""
        self._raw_bytes += raw_bytes
        self._payload_bytes += payload_bytes

    def lost(self, x_NC: Tensor, value_NC: Tensor, group: int = 0) -> None:
        """What one matrix of a layer group decodes to, beside what it was. One that is not finite is not measured: it is seen to be broken."""
        lost, whole = (x_NC.float() - value_NC.float()).square().sum(), x_NC.float().square().sum()
        is_good = (lost + whole).isfinite()
        self._energies[:, group].add_(torch.where(is_good, torch.stack((lost, whole)), 0.0))

    def saw(self, *, is_mismatch: Tensor | None = None, is_broken: Tensor) -> None:
        """Bools of no dimension, on the device. Whoever made a payload has nothing that it could not match."""
        with self._lock:
            if is_mismatch is not None:
                self._mismatches += is_mismatch
            self._broken += is_broken

    def look(self) -> Sightings:
        """What was seen since the last look. Waits for the device."""
        lost, whole = self._energies.tolist()
        with self._lock:
            found = Sightings(
                mismatches=int(self._mismatches),
                broken=int(self._broken),
                raw_bytes=self._raw_bytes,
                payload_bytes=self._payload_bytes,
                error=_relative(sum(lost), sum(whole)),
                errors=_relative_by_group(lost, whole) if any(whole) else (),
            )
            for count in (self._mismatches, self._broken, self._energies):
                count.zero_()
        self._raw_bytes = self._payload_bytes = 0
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Sightings:
    """Of the payloads of a call."""

    mismatches: int = 0
    """Met other bases than those they were made for."""
    broken: int = 0
    """Held numbers that were not finite; counted where they were made, and by everyone who got them."""
    raw_bytes: int = 0
    """Of the tensors that this rank encoded."""
    payload_bytes: int = 0
    """Of their payloads."""
    error: float = 0.0
    """Root mean square of what encoding lost, as a share of that of what was measured: one transfer in :data:`MEASURED_ONE_OF`."""
    errors: tuple[float, ...] = ()
    """The same of each layer group, 0 where nothing of it was measured; empty where nothing was at all."""


def _relative(lost: float, whole: float) -> float:
    return min(math.sqrt(lost / whole), MOST_ERROR) if whole > 0 else 0.0


def _relative_by_group(lost: Sequence[float], whole: Sequence[float]) -> tuple[float, ...]:
    return tuple(max(_relative(*of), LEAST_ERROR) if of[1] > 0 else 0.0 for of in zip(lost, whole, strict=True))


def bytes_of(shapes: Sequence[MatrixShape], dtype: torch.dtype, form: StateForm) -> int:
    """Memory of one end of a channel."""
    return sum(form.bytes_of(shape, dtype) for shape in shapes)


def payload_bytes(codec: Codec, shapes: Sequence[MatrixShape], dtype: torch.dtype) -> int:
    """Bytes of one transfer."""
    return HEADER_BYTES + sum(_aligned(codec.payload_bytes(shape, dtype)) for shape in shapes)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Channel:
    """One end of a channel. The sender has one too, and knows by it what the others have."""

    def __init__(
        self,
        shapes: Sequence[MatrixShape],
        dtype: torch.dtype,
        device: torch.device,
        form: StateForm,
        watch: Watch,
        *,
        keeps: bool = True,
        group: int = 0,
    ) -> None:
        """``keeps``: see :class:`.state.ResidualState`. ``group``: of its layer, see :func:`.policy.layer_group`."""
        self.shapes = tuple(shapes)
        self.states = [ResidualState(shape, dtype, device, form, keeps=keeps) for shape in shapes]
        self.bytes = bytes_of(shapes, dtype, form)
        """What the states take when they are filled, or would take."""
        self.dtype = dtype
        self._device = device
        self._watch = watch
        self._group = group
        self._transfers = 0

    @property
    def is_empty(self) -> bool:
        """Whether a key frame is due."""
        return any(state.is_empty for state in self.states)

    def encode(self, tensors: Sequence[Tensor], codec: Codec) -> tuple[Tensor, list[Tensor]]:
        """``[N, C]`` each, of the channel's dtype -> the payload (flat uint8), and what it decodes to."""
        size = payload_bytes(codec, self.shapes, self.dtype)
        payload = torch.empty(size, dtype=torch.uint8, device=self._device)
        payload[:HEADER_BYTES].view(torch.int64).copy_(self._header(codec))
        self._watch.sent(raw_bytes=sum(x.nbytes for x in tensors), payload_bytes=size)
        sections = self._sections(payload, codec)
        values = [
            codec.encode(x_NC, state, section)
            for x_NC, state, section in zip(tensors, self.states, sections, strict=True)
        ]
        # Here too: the sender knows it first.
        self._watch.saw(is_broken=self._is_broken(sections, codec))
        if not codec.is_key:  # its loss is not the residual codec's
            self._measure(tensors, values)
        return payload, values

    def decode(self, payload: Tensor, codec: Codec) -> list[Tensor]:
        """The values ``[N, C]``, which are valid until the next transfer."""
        is_mismatch = (payload[:HEADER_BYTES].view(torch.int64) != self._header(codec)).any()
        sections = self._sections(payload, codec)
        values = [codec.decode_into(section, state) for state, section in zip(self.states, sections, strict=True)]
        self._watch.saw(is_mismatch=is_mismatch, is_broken=self._is_broken(sections, codec))
        return values

    def _measure(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """What this transfer lost, if it is its turn. Of all of its tensors: keys and values move by shares that differ."""
        if self._transfers % MEASURED_ONE_OF == self._watch.turn_of(self._group):
            for x_NC, value_NC in zip(tensors, values, strict=True):
                self._watch.lost(x_NC, value_NC, self._group)

    def hash(self) -> Tensor:
        """Of what both ends know: int64 of no dimension."""
        total = hash_of([tensor for state in self.states for tensor in state.lasting])
        for number, state in enumerate(self.states):
            if state.trend is not None:
                total += checksum_of(state.trend) * (2 * number + 1)  # odd: no wrong word is lost
        return total

    def _header(self, codec: Codec) -> Tensor:
        """Counts this transfer."""
        self._transfers += 1
        number = torch.full((), self._transfers, device=self._device)  # a fill, where a copy from the host would wait
        return torch.stack((number, torch.zeros_like(number) if codec.is_key else self.hash()))

    def _is_broken(self, sections: Sequence[Tensor], codec: Codec) -> Tensor:
        return torch.stack(
            [codec.is_broken(section, shape, self.dtype) for section, shape in zip(sections, self.shapes, strict=True)]
        ).any()

    def _sections(self, payload: Tensor, codec: Codec) -> list[Tensor]:
        start, sections = HEADER_BYTES, []
        for shape in self.shapes:
            size = codec.payload_bytes(shape, self.dtype)
            sections.append(payload[start : start + size])
            start += _aligned(size)
        return sections
