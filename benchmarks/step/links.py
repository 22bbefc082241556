"""How long transfers would take on a named link: a model, not a measurement.

``time = latency + bytes / rate`` for each transfer, bytes being what one rank sends. Rates are what well-tuned NCCL gets out of such a link in one
direction, about 80 % of the nominal rate; latencies are those of one small collective. Both are assumptions: measure your own link before you rely
on a total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["all-to-all", "hop", "all-gather", "broadcast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What joins two ranks."""

    name: str
    gigabytes_per_s: float
    """Per rank and direction, 1e9 bytes."""
    latency_us: float

    def __post_init__(self) -> None:
        if self.gigabytes_per_s <= 0 or self.latency_us < 0:
            raise ValueError(f"Give {self.name} a rate above 0 and a latency of at least 0.")

    def transfer_ms(self, sent_bytes: int) -> float:
        """The time of one transfer; none for one of no bytes, which is skipped."""
        if sent_bytes == 0:
            return 0.0
        return self.latency_us / 1e3 + sent_bytes / (self.gigabytes_per_s * 1e6)


LINKS: Final = {
    link.name: link
    for link in (
        Link(name="nvlink", gigabytes_per_s=360, latency_us=10),  # fourth generation, 18 links: 450 GB/s
        Link(name="pcie5", gigabytes_per_s=50, latency_us=15),  # 16 lanes: 64 GB/s
        Link(name="pcie4", gigabytes_per_s=25, latency_us=15),  # 16 lanes: 32 GB/s
        Link(name="100gbe", gigabytes_per_s=10, latency_us=30),
        Link(name="10gbe", gigabytes_per_s=1.0, latency_us=60),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One transfer of one rank."""

    kind: Kind
    sent_bytes: int
    """Payload, each byte once for every rank that gets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Communication:
    """What the transfers of a step add to its computation."""

    serial_ms: float
    """When nothing is hidden: every transfer is waited for."""
    exposed_ms: float
    """When each hop of the ring runs beside the attention to the chunk before it; all-to-alls and gathers stay as they are."""


def communication(transfers: Sequence[Transfer], link: Link, *, chunk_attention_ms: float) -> Communication:
    """Model a step's transfers. ``chunk_attention_ms``: the local attention that a hop of the ring can hide behind."""
    serial = exposed = 0.0
    for transfer in transfers:
        took = link.transfer_ms(transfer.sent_bytes)
        serial += took
        exposed += max(0.0, took - chunk_attention_ms) if transfer.kind == "hop" else took
    return Communication(serial_ms=serial, exposed_ms=exposed)
