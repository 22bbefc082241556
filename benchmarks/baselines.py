"""What compressed exchange is compared with. None of it is the product's: a benchmark's own ranks put it in the place of a preset.

==============  ==================================================================================================
baseline        what the ring's keys and values travel as, after a first call in full
==============  ==================================================================================================
``naive-1bit``  signs with a scale per row times channel, of the values themselves: no base, no residual
``cf-1bit``     CompactFusion's binary residual
``cf-2bit``     its 2-bit residual
``cf-lowrank``  its residual of rank 32 with factors in 4 bits, found anew in every call
``stale``       in full, but used one call later, as DistriFusion does: the codec is what it computes with, and waits;
                :class:`StaleExchange` computes the same and does not wait
==============  ==================================================================================================

All as published (CompactFusion, arXiv:2507.17511; DistriFusion, arXiv:2402.19481): key frames travel as they are, the prediction is the base, whoever owns keys
works with the exact ones, and the all-to-all of a plan with ulysses is not compressed. Not as published: the numbers stay in the
dtype of the call (theirs are fp16), payloads have our header of 16 bytes, and the subspace starts from a fixed pattern and not from a random one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..backend.compression.codecs import CODECS, Codec, LowRank, Raw
from ..backend.compression.policy import PRESETS, Preset
from ..backend.compression.state import MatrixShape, ResidualState, StateForm
from ..backend.compression.store import ResidualCall
from ..backend.errors import InternalError
from ..backend.parallel import usp
from ..backend.parallel.exchange import Exchange, Label, Move, Parcel, RawCodec, Value
from ..backend.parallel.mesh import SequenceMesh
from ..backend.parallel.pending import Pending
from ..backend.parallel.residual import ResidualHops
from ..backend.parallel.transport import Message
from ..kernels import low_rank, residual_levels
from ..kernels.low_rank.formats import GREATEST_CODE

EXCHANGE_VARIABLE: Final = "TUTTI_BENCHMARK_EXCHANGE"
"""What :mod:`.baseline_rank` takes the place of all presets: see :func:`exchange_of`."""


# --- codecs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NaiveBinary:
    """One bit a number of the values themselves: what a residual is compared with."""

    name: str = "naive-1bit"
    is_key: bool = True
    """What was known before does not matter."""

    def payload_bytes(self, shape: MatrixShape, dtype: torch.dtype) -> int:
        """As of a binary residual."""
        return residual_levels.payload_bytes("binary", shape.rows, shape.channels)

    def encode(self, x_NC: Tensor, state: ResidualState, payload: Tensor) -> Tensor:
        """A residual to zero."""
        codes, sent_u, sent_v = self._sections(payload, state.shape)
        with state.updated(by_key_frame=True) as value:
            u, v = residual_levels.scales(x_NC, value.zero_())
            residual_levels.encode(x_NC, value, u, v, "binary", codes)
            sent_u.copy_(u)
            sent_v.copy_(v)
        return value

    def decode_into(self, payload: Tensor, state: ResidualState) -> Tensor:
        """The same, from the bytes."""
        codes, u, v = self._sections(payload, state.shape)
        with state.updated(by_key_frame=True) as value:
            residual_levels.decode(codes, u, v, value.zero_(), "binary")
        return value

    def is_broken(self, payload: Tensor, shape: MatrixShape, dtype: torch.dtype) -> Tensor:
        """Whether a row was not finite."""
        return residual_levels.has_broken_rows(self._sections(payload, shape)[1])

    def _sections(self, payload: Tensor, shape: MatrixShape) -> tuple[Tensor, Tensor, Tensor]:
        return residual_levels.sections(payload, "binary", shape.rows, shape.channels)


@dataclass(frozen=True, slots=True)
class PublishedLowRank(LowRank):
    """Factors whose levels begin at the least number of a column, from a subspace that is searched anew in every call: two iterations, no warm start."""

    name: str = "cf-lowrank"

    def encode(self, x_NC: Tensor, state: ResidualState, payload: Tensor) -> Tensor:
        """The payload has the sections of ours, so that decoding it is ours too."""
        with state.updated(by_key_frame=False) as value:
            u, v, _ = low_rank.factorise(x_NC, value, rank=self.rank)
            payload.copy_(pack_from_minimum(u, v))
            low_rank.add_decoded(payload, value)
        return value


def pack_from_minimum(u_NR: Tensor, v_CR: Tensor) -> Tensor:
    """Affine 4 bits per column: ``code = round((value - min) / scale)``, ``scale = (max - min) / 15``, scale and min in float16."""
    factors = [_levels_from_minimum(factor) for factor in (u_NR, v_CR)]
    scales_4R = torch.cat([scales for scales, _ in factors])
    return torch.cat([scales_4R.flatten().view(torch.uint8), *(codes for _, codes in factors)])


def _levels_from_minimum(factor_nR: Tensor) -> tuple[Tensor, Tensor]:
    """float16 ``[2, R]``, and the codes, two a byte."""
    values_Rn = factor_nR.float().mT
    low = values_Rn.amin(1).half()
    scale = ((values_Rn.amax(1) - low.float()) / GREATEST_CODE).half()
    steps = (values_Rn - low.float()[:, None]) / scale.float().clamp_min(torch.finfo(torch.float16).tiny)[:, None]
    codes_Rn = steps.nan_to_num(nan=0.0).round().clamp(0, GREATEST_CODE).to(torch.uint8)
    even_Rn = torch.nn.functional.pad(codes_Rn, (0, codes_Rn.shape[1] % 2))
    return torch.stack([scale, low]), (even_Rn[:, 0::2] | (even_Rn[:, 1::2] << 4)).flatten()


@dataclass(frozen=True, slots=True)
class Stale(Raw):
    """The numbers as they are, and what is worked with are those of the call before."""

    name: str = "stale"
    is_key: bool = False

    def encode(self, x_NC: Tensor, state: ResidualState, payload: Tensor) -> Tensor:
        """Returns what the others work with."""
        with state.updated(by_key_frame=False) as value:
            before = value.clone()
            value.copy_(x_NC)
            payload.copy_(value.view(-1).view(torch.uint8))
        return before

    def decode_into(self, payload: Tensor, state: ResidualState) -> Tensor:
        """The values of the call before; those of this one are kept."""
        with state.updated(by_key_frame=False) as value:
            before = value.clone()
            value.view(-1).view(torch.uint8).copy_(payload)
        return before


# --- contestants ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline(Preset):
    """A preset with a codec that the product does not have. Along the ring alone."""

    later: Codec

    def __post_init__(self) -> None:
        """Any codec may follow the key frame here, also one that is itself a key frame."""

    def codec(self, *, is_key: bool, group: int = 0) -> Codec:
        """Of one call, the same in all layers."""
        return CODECS[self.key] if is_key else self.later


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreeing(Preset):
    """A preset under which whoever owns keys and values works with what the others decode: all ranks compute with the same numbers."""


def _baseline(name: str, later: Codec) -> Baseline:
    return Baseline(name=name, key="raw", residual=later.name, later=later)


BASELINES: Final[Mapping[str, Baseline]] = {
    baseline.name: baseline
    for baseline in (
        _baseline("naive-1bit", NaiveBinary()),
        _baseline("cf-1bit", CODECS["binary"]),
        _baseline("cf-2bit", CODECS["quaternary-compactfusion"]),
        _baseline("cf-lowrank", PublishedLowRank()),
        _baseline("stale", Stale()),
    )
}
"""Name -> baseline."""

PRESET_PARTS: Final = ("order", "residual", "key", "delayed", "int8base", "own")
"""Of a preset that is written out, in any order; what is left out is as in ``balanced``, and ``own`` is ``exact`` or ``decoded``."""
OWN: Final = {"exact": Preset, "decoded": Agreeing}
"""What a rank takes for its own keys and values."""


def exchange_of(text: str) -> Preset:
    """Read the name of a baseline, or a preset: ``order=2,residual=quaternary,key=key-int8,delayed=1,int8base=0``.

    Raises:
        ValueError: it is neither.
    """
    if text in BASELINES:
        return BASELINES[text]
    given: dict[str, str] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in PRESET_PARTS or not value or name in given:
            raise ValueError(
                f"Name a baseline of {', '.join(BASELINES)}, or write a preset of {', '.join(PRESET_PARTS)}, "
                f"each with its value and at most once: {part!r} is neither."
            )
        given[name] = value
    like = PRESETS["balanced"]
    key, residual = given.get("key", like.key), given.get("residual", like.residual)
    for codec in (key, residual):
        if codec not in CODECS:
            raise ValueError(f"Take a codec of {', '.join(CODECS)}: {codec!r} is none of them.")
    if (own := given.get("own", "exact")) not in OWN:
        raise ValueError(f"Set own to {' or '.join(OWN)}: got {own!r}.")
    return OWN[own](name=text, key=key, residual=residual, form=_form_of(given, like.form))


def _form_of(given: Mapping[str, str], like: StateForm) -> StateForm:
    """Of numbers."""
    order, delayed, int8_base = (
        _number(given.get(name, str(int(value))))
        for name, value in (("order", like.order), ("delayed", like.delayed_scales), ("int8base", like.int8_base))
    )
    return StateForm(order=order, delayed_scales=bool(delayed), int8_base=bool(int8_base))


def _number(text: str) -> int:
    if text not in ("0", "1", "2"):
        raise ValueError(f"Write 0 or 1 for a switch, and 1 or 2 for an order: got {text!r}.")
    return int(text)


class OwnersDecode(ResidualHops):
    """What :class:`Agreeing` asks for; the product does not do it, because it loses more."""

    def encode(self, value: Tensor, label: Label) -> tuple[Tensor, Value]:
        """The payload, and what it decodes to."""
        return self.encoded(value, label)


class HeadsInFull(RawCodec):
    """As published: the all-to-all is not compressed."""

    def __init__(self, call: ResidualCall, layer: int) -> None:
        """Takes what the product's own takes, and needs none of it."""


class StaleExchange(Exchange):
    """Keys and values that nobody waits for in the call in which they are sent: each rank gets all others' own ones, and uses those of the call before.

    Every rank sends directly to every other one, as many bytes as in a ring. The first call waits for its own.
    """

    def __init__(self, mesh: SequenceMesh, layer: int, travelling: dict[tuple[int, int], Parcel]) -> None:
        """``travelling``: what one call leaves to the next."""
        super().__init__(mesh, RawCodec())
        self._layer = layer
        self._travelling = travelling
        self._own: Parcel | None = None
        self._distance = 0

    def pack(self, value: Tensor, lane: int = 0) -> Parcel:
        """This rank's own, which it works with at once."""
        self._own, self._distance = super().pack(value, lane), 0
        return self._own

    def hop(self, moves: Sequence[Move]) -> list[Parcel]:
        """Start the next of the transfers; what comes in is what the call before has sent."""
        if self._own is None or len(moves) != 1:
            raise InternalError("Stale keys and values travel in one lane, and are packed before.")
        (move,), ring = moves, self.mesh.ring
        self._distance += move.shift
        target, source = (ring.index + self._distance) % ring.size, (ring.index - self._distance) % ring.size
        sent, received = Message(self._own.payload, ring.ranks[target]), Message(move.landing, ring.ranks[source])
        pending: Pending = self.mesh.transport.hop([received], [sent], ring.process_group)
        place = self._layer, self._distance
        before = self._travelling.get(place)
        self._travelling[place] = Parcel(self.hops, move.landing, Label(source), move.landing, pending)
        return [before or self._travelling[place]]


def install(preset: Preset) -> None:
    """From now on every preset of this process is this one. For the processes of benchmarks: it changes the product's own modules."""
    for name in PRESETS:
        PRESETS[name] = preset
    if isinstance(preset, Agreeing):
        usp.ResidualHops = OwnersDecode  # type: ignore[attr-defined]
    if isinstance(preset, Baseline):
        usp.ResidualHeads = HeadsInFull  # type: ignore[attr-defined, assignment]
