"""Residual codecs in the exchange: of the ring's hops, and of the Ulysses all-to-all. The state behind them is :mod:`tutti.backend.compression`'s.

**A rank works with its own numbers as they are**, and with those of others as they were decoded. Bases are the same everywhere all the same; what differs
between ranks is what they compute with. It was measured both ways (``docs/compression.md``): a share of exact keys and values, that of the
tokens nearest to a query among them, is worth more than ranks that agree.

Along the ring keys and values share a channel. Their owner encodes them once, the payload is forwarded as it came, and each rank decodes it against what it
knows of that owner. In the all-to-all every pair of ranks has a channel of its own for each direction, with the tokens of one and the heads of the
other, so its state falls with the number of ranks while a ring's does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..compression.channel import Channel, payload_bytes
from ..compression.codecs import Codec
from ..compression.state import MatrixShape
from ..compression.store import Key, ResidualCall
from .exchange import Label, Splits, Value
from .mesh import SequenceMesh


class ResidualHops:
    """The keys and values ``[2, B, n, H, D]`` of one attention, as a :class:`.exchange.HopCodec`."""

    name = "residual"
    exact = False

    def __init__(self, call: ResidualCall, layer: int) -> None:
        self._call = call
        self._layer = layer

    def encode(self, value: Tensor, label: Label) -> tuple[Tensor, Value]:
        return self.encoded(value, label)[0], value

    def encoded(self, value: Tensor, label: Label) -> tuple[Tensor, Value]:
        """The payload, and what everybody else takes the value for."""
        if not value.shape[2]:
            return value.new_empty(0, dtype=torch.uint8), value
        channel, codec = self._channel(value, label)
        payload, known = channel.encode([x.flatten(0, 1).flatten(1) for x in value], codec)
        return payload, _as_heads(known, value)

    def landing(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """A shape without memory: values land in their bases."""
        return torch.empty(*shape, dtype=like.dtype, device="meta")

    def payload_for(self, landing: Tensor, label: Label) -> Tensor:
        size = 0
        if landing.shape[2]:
            channel, codec = self._channel(landing, label)
            size = payload_bytes(codec, channel.shapes, channel.dtype)
        return torch.empty(size, dtype=torch.uint8, device=self._call.device)

    def decode(self, payload: Tensor, landing: Tensor, label: Label) -> Value:
        return self.decoder(landing, label)(payload)

    def decoder(self, landing: Tensor, label: Label) -> Callable[[Tensor], Value]:
        if not landing.shape[2]:
            nothing = torch.empty_like(landing, device=self._call.device)
            return lambda payload: nothing
        channel, codec = self._channel(landing, label)
        return lambda payload: _as_heads(channel.decode(payload, codec), landing)

    def _channel(self, value: Tensor, label: Label) -> tuple[Channel, Codec]:
        _, B, n, H, D = value.shape
        shape = MatrixShape(rows=B * n, heads=H, head_dim=D)
        return self._call.channel((self._layer, "ring", label.origin, label.lane), [shape, shape], value.dtype)


def _as_heads(values: Sequence[Tensor], like: Tensor) -> tuple[Tensor, ...]:
    """``[B * n, H * D]`` each -> ``[B, n, H, D]``."""
    return tuple(value.view(like.shape[1:]) for value in values)


class ResidualHeads:
    """The all-to-all of one attention, as a :class:`.exchange.HeadCodec`: q, k and v share a channel, the output has its own."""

    name = "residual"
    exact = False

    def __init__(self, call: ResidualCall, layer: int) -> None:
        self._call = call
        self._layer = layer

    def all_to_all(self, tensors: Sequence[Tensor], splits: Splits, mesh: SequenceMesh) -> tuple[Tensor, ...]:
        """What a rank keeps is not encoded."""
        own, first = mesh.ulysses.index, tensors[0]
        way = "back" if splits.parts == 1 else "out"
        pieces = list(zip(*(_cut(tensor, splits) for tensor in tensors), strict=True))
        nothing = first.new_empty(0, dtype=torch.uint8)
        sent = [
            nothing if peer == own else self._encode(piece, (self._layer, way, own, peer))
            for peer, piece in enumerate(pieces)
        ]
        B, _, H, D = first.shape
        coming = [(B, tokens, H // splits.parts, D) for tokens in splits.received]
        channels = [
            None if peer == own else self._channel(shape, len(tensors), first.dtype, (self._layer, way, peer, own))
            for peer, shape in enumerate(coming)
        ]
        sizes = [0 if known is None else payload_bytes(known[1], known[0].shapes, first.dtype) for known in channels]
        landing = first.new_empty(sum(sizes), dtype=torch.uint8)
        mesh.transport.all_to_all(
            landing, torch.cat(sent), sizes, [len(payload) for payload in sent], mesh.ulysses.process_group
        )
        parts: list[Sequence[Tensor]] = []
        for peer, (section, shape, known) in enumerate(zip(torch.split(landing, sizes), coming, channels, strict=True)):
            if peer == own:
                parts.append(pieces[own])
            elif known is None:
                parts.append([first.new_empty(shape)] * len(tensors))
            else:
                parts.append([value.view(shape) for value in known[0].decode(section, known[1])])
        return tuple(_join([part[number] for part in parts], splits) for number in range(len(tensors)))

    def _encode(self, piece: Sequence[Tensor], key: Key) -> Tensor:
        """The payload of some tensors ``[B, n, h, D]``."""
        first = piece[0]
        known = self._channel(tuple(first.shape), len(piece), first.dtype, key)
        if known is None:
            return first.new_empty(0, dtype=torch.uint8)
        channel, codec = known
        return channel.encode([x.flatten(0, 1).flatten(1) for x in piece], codec)[0]

    def _channel(
        self, shape: tuple[int, ...], tensors: int, dtype: torch.dtype, key: Key
    ) -> tuple[Channel, Codec] | None:
        """That of some tensors of this shape ``[B, n, h, D]``; none where there are no tokens."""
        B, n, h, D = shape
        return self._call.channel(key, [MatrixShape(rows=B * n, heads=h, head_dim=D)] * tensors, dtype) if n else None


def _cut(tensor: Tensor, splits: Splits) -> Sequence[Tensor]:
    """``[B, n, H, D]`` for each peer: some heads of all tokens on the way out, all heads of some tokens on the way back."""
    return tensor.chunk(splits.parts, 2) if splits.parts > 1 else torch.split(tensor, list(splits.sent), 1)


def _join(parts: Sequence[Tensor], splits: Splits) -> Tensor:
    """What came from each peer, in one tensor."""
    return torch.cat(list(parts), 1 if splits.received_parts == 1 else 2)
