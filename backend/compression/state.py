"""What one end of a transfer keeps of one matrix: the base, how it was moving, and the scales to come.

A residual is ``r = x - p``, p being the prediction from earlier payloads; both ends then do ``b' = p + decode(payload)`` with the very same arithmetic.
What a payload does not say stays in ``x - b'`` and comes back in the next residual: error feedback by construction (the Markov compressor of EF21, Richtarik
et al. 2021, arXiv:2106.05203; CompactFusion, arXiv:2507.17511). The prediction is

* of order 1, the base itself: ``p = b``;
* of order 2, damped: ``p = b + d`` with ``d' = DAMPING * (b' - b)``. Undamped, an order 2 repeats the quantiser's noise.

Shape letters: N rows (tokens of all batch rows), H heads, D head_dim, C = H * D.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import int8_base

DAMPING = 0.5
"""Of the trend: gamma."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixShape:
    """Of a matrix ``[N, H * D]``."""

    rows: int
    heads: int
    head_dim: int

    @property
    def channels(self) -> int:
        """C."""
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class StateForm:
    """How much a state keeps. The same at both ends."""

    order: int = 1
    """Of the prediction: 1 or 2."""
    int8_base: bool = False
    """Whether the base is kept in 8 bits; it then *is* its quantised value, and the next residual makes up for what that loses."""
    delayed_scales: bool = False
    """Whether codes of few bits take the scales that came with the payload before, so that encoding needs one pass."""

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"Predict with order 1 or 2: {self.order} is neither.")

    def bytes_of(self, shape: MatrixShape, dtype: torch.dtype) -> int:
        """Memory of one state, without scales of rows and channels: these are a thousandth of it."""
        numbers = shape.rows * shape.channels * dtype.itemsize
        base = int8_base.base_bytes(shape.rows, shape.channels, shape.heads) if self.int8_base else numbers
        return base + (numbers if self.order == 2 else 0)


class ResidualState:
    """One matrix at one end. It is empty until a key frame has filled it."""

    def __init__(
        self, shape: MatrixShape, dtype: torch.dtype, device: torch.device, form: StateForm, *, keeps: bool = True
    ) -> None:
        """``keeps``: whether there is room for it. Without, every key frame gives its value and leaves the state as empty as it was."""
        self._keeps = keeps
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.form = form
        self.is_empty = True
        self.scales: tuple[Tensor, Tensor] | None = None
        """fp16 u ``[N]`` and v ``[C]`` of the payload before; ``None`` behind a key frame."""
        self.warm: Tensor | None = None
        """Where the subspace of the next low-rank payload begins, ``[C, R]``: at the sender only."""
        self._base: Tensor | None = None
        self._trend: Tensor | None = None
        self._small: tuple[Tensor, Tensor] | None = None
        """The base in 8 bits, and its scales."""

    @property
    def kept(self) -> list[Tensor]:
        """What must be the same bits at both ends: whatever the next value depends on."""
        return [*self.lasting, *([] if self._trend is None else [self._trend])]

    @property
    def lasting(self) -> list[Tensor]:
        """Of what is kept, the base and the scales: an error in them stays."""
        base = self._small if self._small is not None else (self._base,)
        return [tensor for tensor in (*base, *(self.scales or ())) if tensor is not None]

    @property
    def trend(self) -> Tensor | None:
        """How the base was moving, ``[N, C]``: made anew by every transfer."""
        return self._trend

    @contextmanager
    def updated(self, *, by_key_frame: bool) -> Iterator[Tensor]:
        """The prediction ``[N, C]``, for the body to turn into the value in place; what a key frame finds there means nothing.

        The call goes on with that same tensor. It is the base itself, unless that is kept in 8 bits: valid until the next update.

        Raises:
            ValueError: a residual of an empty state.
        """
        if by_key_frame:
            self.scales = self.warm = self._trend = None
            value, before = self._buffer(), None
        elif self.is_empty:
            raise ValueError("Send a key frame first: there is no base for a residual.")
        else:
            value = self._buffer()
            if self._small is not None:
                int8_base.dequantise(*self._small, value)
            before = value.clone() if self.form.order == 2 else None
            if self._trend is not None:
                value.add_(self._trend)
        yield value
        if not self._keeps:
            self._base = None
            return
        if before is not None:
            self._trend = torch.sub(value, before, out=before).mul_(DAMPING)
        if self.form.int8_base:
            self._keep_small(value)
        self.is_empty = False

    def _buffer(self) -> Tensor:
        if self._base is not None:
            return self._base
        value = torch.empty(self.shape.rows, self.shape.channels, dtype=self.dtype, device=self.device)
        if not self.form.int8_base:
            self._base = value
        return value

    def _keep_small(self, value_NC: Tensor) -> None:
        if self._small is None:
            scales_NH = torch.empty(self.shape.rows, self.shape.heads, dtype=torch.float32, device=self.device)
            self._small = torch.empty_like(value_NC, dtype=torch.int8), scales_NH
        int8_base.requantise(value_NC, *self._small)
