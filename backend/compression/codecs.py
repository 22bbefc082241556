"""What a payload holds. A codec keeps nothing of its own: everything that lasts from call to call is in the state.

===============  =========================================  =========================
codec            a payload of ``[N, C]``                    is
===============  =========================================  =========================
``raw``          the numbers                                a key frame, exact
``key-int8``     8 bits, a scale per token and head         a key frame
``key-int4``     4 bits, likewise                           a key frame
``int8``         8 bits, a scale per token and head         a residual
``int4``         4 bits, likewise                           a residual
``fp8``          8-bit floats, likewise                     a residual
``quaternary``   2 bits, a scale per row times channel      a residual
``ternary``      1.6 bits, likewise                         a residual
``binary``       1 bit, likewise                            a residual
``low-rank``     two factors of rank 32 in 4 bits           a residual
===============  =========================================  =========================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from ...kernels import low_rank, residual_levels, residual_rows
from .state import MatrixShape, ResidualState


class Codec(Protocol):
    """One payload format."""

    @property
    def name(self) -> str:
        """In :data:`CODECS`."""

    @property
    def is_key(self) -> bool:
        """Whether it says everything: the state before does not matter."""

    def payload_bytes(self, shape: MatrixShape, dtype: torch.dtype) -> int:
        """The size of every payload of such a matrix."""

    def encode(self, x_NC: Tensor, state: ResidualState, payload: Tensor) -> Tensor:
        """Write the payload (flat uint8) of ``x`` (of the state's dtype) and update the state by it; what it decodes to, ``[N, C]``.

        Raises:
            ValueError: a residual of an empty state.
        """

    def decode_into(self, payload: Tensor, state: ResidualState) -> Tensor:
        """Update the state by a payload, to the same bits as :meth:`encode` did; its value ``[N, C]``.

        Raises:
            ValueError: a residual of an empty state.
        """

    def is_broken(self, payload: Tensor, shape: MatrixShape, dtype: torch.dtype) -> Tensor:
        """Whether it says that numbers were not finite, and that a key frame is due: a bool of no dimension, on the payload's device."""


@dataclass(frozen=True, slots=True)
class Raw:
    """The numbers as they are: a key frame that loses nothing. NaN and infinities travel too, and are said to be there: no residual refers to them."""

    name: str = "raw"
    is_key: bool = True

    def payload_bytes(self, shape: MatrixShape, dtype: torch.dtype) -> int:
        return shape.rows * shape.channels * dtype.itemsize

    def encode(self, x_NC: Tensor, state: ResidualState, payload: Tensor) -> Tensor:
        with state.updated(by_key_frame=True) as value:
            value.copy_(x_NC)
            payload.copy_(value.view(-1).view(torch.uint8))
        return value

    def decode_into(self, payload: Tensor, state: ResidualState) -> Tensor:
        with state.updated(by_key_frame=True) as value:
            value.view(-1).view(torch.uint8).copy_(payload)
        return value

    def is_broken(self, payload: Tensor, shape: MatrixShape, dtype: torch.dtype) -> Tensor:
        return payload.view(dtype).isfinite().all().logical_not()


@dataclass(frozen=True, slots=True)
class Rows:
    """A scale for each token and head."""

    name: str
    form: str
    is_key: bool

    def payload_bytes(self, shape: MatrixShape, dtype: torch.dtype) -> int:
        return shape.rows * shape.heads * residual_rows.row_bytes(self.form, shape.head_dim)

    def encode(self, x_NC: Tensor, state: ResidualState, payload: Tensor) -> Tensor:
        shape = state.shape
        with state.updated(by_key_frame=self.is_key) as value:
            heads = value.view(shape.rows, shape.heads, shape.head_dim)
            residual_rows.encode(
                x_NC.view(shape.rows, shape.heads, shape.head_dim),
                heads,
                self.form,
                self._rows(payload, shape),
                is_key=self.is_key,
            )
        return value

    def decode_into(self, payload: Tensor, state: ResidualState) -> Tensor:
        shape = state.shape
        with state.updated(by_key_frame=self.is_key) as value:
            heads = value.view(shape.rows, shape.heads, shape.head_dim)
            residual_rows.decode(self._rows(payload, shape), heads, self.form, is_key=self.is_key)
        return value

    def is_broken(self, payload: Tensor, shape: MatrixShape, dtype: torch.dtype) -> Tensor:
        return residual_rows.has_broken_rows(self._rows(payload, shape))

    def _rows(self, payload: Tensor, shape: MatrixShape) -> Tensor:
        return payload.view(shape.rows, shape.heads, residual_rows.row_bytes(self.form, shape.head_dim))


@dataclass(frozen=True, slots=True)
class Levels:
    """One to two bits a number, a scale for each row times one for each channel."""

    name: str
    form: str
    is_key: bool = False

    def payload_bytes(self, shape: MatrixShape, dtype: torch.dtype) -> int:
        return residual_levels.payload_bytes(self.form, shape.rows, shape.channels)

    def encode(self, x_NC: Tensor, state: ResidualState, payload: Tensor) -> Tensor:
        codes, sent_u, sent_v = self._sections(payload, state.shape)
        with state.updated(by_key_frame=False) as value:
            # Scales from the payload before, or of this residual; either way the payload ends with scales for whoever needs them next.
            scales = state.scales or residual_levels.scales(x_NC, value)
            own = residual_levels.encode(x_NC, value, *scales, self.form, codes)
            u, v = own if state.scales else scales
            sent_u.copy_(u)
            sent_v.copy_(v)
        self._keep_scales(state, u, v)
        return value

    def decode_into(self, payload: Tensor, state: ResidualState) -> Tensor:
        codes, u, v = self._sections(payload, state.shape)
        with state.updated(by_key_frame=False) as value:
            residual_levels.decode(codes, *(state.scales or (u, v)), value, self.form, next_u=u)
        self._keep_scales(state, u.clone(), v.clone())  # the payload's memory is the transport's
        return value

    def is_broken(self, payload: Tensor, shape: MatrixShape, dtype: torch.dtype) -> Tensor:
        return residual_levels.has_broken_rows(self._sections(payload, shape)[1])

    def _sections(self, payload: Tensor, shape: MatrixShape) -> tuple[Tensor, Tensor, Tensor]:
        return residual_levels.sections(payload, self.form, shape.rows, shape.channels)

    @staticmethod
    def _keep_scales(state: ResidualState, u: Tensor, v: Tensor) -> None:
        if state.form.delayed_scales:
            state.scales = u, v


@dataclass(frozen=True, slots=True)
class LowRank:
    """The largest directions of the residual."""

    name: str = "low-rank"
    rank: int = low_rank.RANK
    is_key: bool = False

    def payload_bytes(self, shape: MatrixShape, dtype: torch.dtype) -> int:
        return low_rank.payload_bytes(shape.rows, shape.channels, self.rank)

    def encode(self, x_NC: Tensor, state: ResidualState, payload: Tensor) -> Tensor:
        warm = state.warm
        with state.updated(by_key_frame=False) as value:
            u, v, warm = low_rank.factorise(x_NC, value, warm, rank=self.rank)
            payload.copy_(low_rank.pack(u, v))
            low_rank.add_decoded(payload, value)
        state.scales, state.warm = None, warm
        return value

    def decode_into(self, payload: Tensor, state: ResidualState) -> Tensor:
        with state.updated(by_key_frame=False) as value:
            low_rank.add_decoded(payload, value)
        state.scales = None
        return value

    def is_broken(self, payload: Tensor, shape: MatrixShape, dtype: torch.dtype) -> Tensor:
        return low_rank.is_broken(payload)


CODECS: Final[dict[str, Codec]] = {
    codec.name: codec
    for codec in (
        Raw(),
        Rows("key-int8", "int8", is_key=True),
        Rows("key-int4", "int4", is_key=True),
        Rows("int8", "int8", is_key=False),
        Rows("int4", "int4", is_key=False),
        Rows("fp8", "fp8", is_key=False),
        Levels("quaternary", "quaternary"),
        Levels("ternary", "ternary"),
        Levels("binary", "binary"),
        Levels("quaternary-compactfusion", "quaternary-compactfusion"),
        LowRank(),
    )
}
"""Name -> codec. ``quaternary-compactfusion`` is there to be compared with."""
