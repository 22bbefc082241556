"""What always travels together, from one rank to one or more others: some matrices, behind one header.

The header says which transfer of its channel this is, and what the sender's bases were before it: a payload that meets other bases, because one was lost,
came twice, or memory went bad, is found as it is decoded. Nothing waits for the answer. A :class:`Watch` collects it, and the ranks look before the
next call (:mod:`.store`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .codecs import Codec
from .integrity import hash_of
from .state import MatrixShape, ResidualState, StateForm

HEADER_WORDS = 2
"""int64: number of the transfer, hash of the bases before it."""
HEADER_BYTES = 8 * HEADER_WORDS
ALIGNMENT = 16
"""Sections of a payload begin at multiples of so many bytes: vector loads, and views as wider numbers."""


class Watch:
    """Whether anything was wrong since the last look; asked once a call, so that no transfer waits for a device."""

    def __init__(self, device: torch.device) -> None:
        self._mismatches = torch.zeros((), dtype=torch.int64, device=device)
        self._broken = torch.zeros((), dtype=torch.int64, device=device)

    def saw(self, *, is_mismatch: Tensor, is_broken: Tensor) -> None:
        """Bools of no dimension, on the device."""
        self._mismatches += is_mismatch
        self._broken += is_broken

    def look(self) -> Sightings:
        """What was seen since the last look. Waits for the device."""
        found = Sightings(mismatches=int(self._mismatches), broken=int(self._broken))
        self._mismatches.zero_()
        self._broken.zero_()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Sightings:
    """Payloads that were not as they should be."""

    mismatches: int
    """Met other bases than those they were made for."""
    broken: int
    """Held numbers that were not finite."""


def payload_bytes(codec: Codec, shapes: Sequence[MatrixShape], dtype: torch.dtype) -> int:
    """Bytes of one transfer."""
    return HEADER_BYTES + sum(_aligned(codec.payload_bytes(shape, dtype)) for shape in shapes)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Channel:
    """One end of a channel; the sender has one too, and works with what it decodes."""

    def __init__(
        self, shapes: Sequence[MatrixShape], dtype: torch.dtype, device: torch.device, form: StateForm, watch: Watch
    ) -> None:
        self.shapes = tuple(shapes)
        self.states = [ResidualState(shape, dtype, device, form) for shape in shapes]
        self.bytes = sum(form.bytes_of(shape, dtype) for shape in shapes)
        """What the states take when they are filled."""
        self.dtype = dtype
        self._device = device
        self._watch = watch
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
        values = [
            codec.encode(x_NC, state, section)
            for x_NC, state, section in zip(tensors, self.states, self._sections(payload, codec), strict=True)
        ]
        return payload, values

    def decode(self, payload: Tensor, codec: Codec) -> list[Tensor]:
        """The values ``[N, C]``, which are valid until the next transfer."""
        is_mismatch = (payload[:HEADER_BYTES].view(torch.int64) != self._header(codec)).any()
        values, is_broken = [], torch.zeros_like(is_mismatch)
        for state, section in zip(self.states, self._sections(payload, codec), strict=True):
            values.append(codec.decode_into(section, state))
            is_broken = is_broken | codec.is_broken(section, state.shape)
        self._watch.saw(is_mismatch=is_mismatch, is_broken=is_broken)
        return values

    def hash(self) -> Tensor:
        """Of what both ends know: int64 of no dimension."""
        return hash_of([tensor for state in self.states for tensor in state.kept])

    def _header(self, codec: Codec) -> Tensor:
        """Counts this transfer."""
        self._transfers += 1
        number = torch.tensor(self._transfers, device=self._device)
        return torch.stack((number, torch.zeros_like(number) if codec.is_key else self.hash()))

    def _sections(self, payload: Tensor, codec: Codec) -> list[Tensor]:
        start, sections = HEADER_BYTES, []
        for shape in self.shapes:
            size = codec.payload_bytes(shape, self.dtype)
            sections.append(payload[start : start + size])
            start += _aligned(size)
        return sections
