"""Both ends of a channel in one process, for the tests of compressed exchange."""

from __future__ import annotations

import torch
from torch import Tensor
from tutti.backend.compression.channel import Channel, Sightings, Watch
from tutti.backend.compression.codecs import CODECS
from tutti.backend.compression.state import MatrixShape, StateForm

CPU = torch.device("cpu")
KEYS = tuple(name for name, codec in CODECS.items() if codec.is_key)
RESIDUALS = tuple(name for name, codec in CODECS.items() if not codec.is_key)
FORMS = {
    "plain": StateForm(),
    "order 2": StateForm(order=2),
    "8-bit base": StateForm(int8_base=True),
    "delayed scales": StateForm(delayed_scales=True),
    "all three": StateForm(order=2, int8_base=True, delayed_scales=True),
}


def shape_of(rows: int, heads: int, head_dim: int) -> MatrixShape:
    return MatrixShape(rows=rows, heads=heads, head_dim=head_dim)


class Ends:
    """A sender and a receiver, each with a watch of its own."""

    def __init__(
        self,
        shape: MatrixShape,
        dtype: torch.dtype = torch.float32,
        form: StateForm | None = None,
        *,
        matrices: int = 1,
        keeps: bool = True,
    ) -> None:
        self.watches = Watch(CPU), Watch(CPU)
        self.sender, self.receiver = (
            Channel([shape] * matrices, dtype, CPU, form or StateForm(), watch, keeps=keeps) for watch in self.watches
        )

    def send(self, codec: str, *tensors: Tensor, lost: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """The values at both ends, copied. ``lost``: the payload does not arrive."""
        payload, sent = self.sender.encode(tensors, CODECS[codec])
        sent = [value.clone() for value in sent]
        if lost:
            return sent, []
        arrived = payload.clone()
        payload.fill_(0xAA)  # a transport may use its memory again
        got = [value.clone() for value in self.receiver.decode(arrived, CODECS[codec])]
        arrived.fill_(0x55)
        return sent, got

    def look(self) -> tuple[Sightings, Sightings]:
        """Of the sender and of the receiver."""
        first, second = (watch.look() for watch in self.watches)
        return first, second

    @property
    def hashes(self) -> tuple[int, int]:
        return int(self.sender.hash()), int(self.receiver.hash())


def error(value: Tensor, x: Tensor) -> float:
    """Root mean square, as a share of that of x."""
    return float((value.float() - x.float()).norm() / x.float().norm())
