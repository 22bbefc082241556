"""The negative control of exchanges: what a rank is sent is thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from tutti.backend.parallel.exchange import Label, RawCodec


def drop(codec: RawCodec, payload: Tensor, landing: Tensor, label: Label) -> Tensor:
    """What takes the place of ``RawCodec.decode``."""
    return landing.zero_()


@contextmanager
def dropping(drops: bool = True) -> Iterator[None]:
    """In this process, and only where ``drops``."""
    whole = RawCodec.decode
    if drops:
        RawCodec.decode = drop  # type: ignore[method-assign]
    try:
        yield
    finally:
        RawCodec.decode = whole  # type: ignore[method-assign]
