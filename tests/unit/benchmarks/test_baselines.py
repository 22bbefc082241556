"""What compressed exchange is compared with does what was published, and a setting of the command line names it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from tutti.backend.compression.channel import Channel, Watch
from tutti.backend.compression.codecs import CODECS, Codec
from tutti.backend.compression.policy import PRESETS, Preset
from tutti.backend.compression.state import MatrixShape, StateForm
from tutti.backend.compression.store import ResidualCall
from tutti.backend.parallel.exchange import Label, Move
from tutti.backend.parallel.mesh import Axis, SequenceMesh
from tutti.backend.parallel.pending import Pending
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.residual import ResidualHops
from tutti.backend.parallel.transport import DirectTransport, Message
from tutti.benchmarks.baselines import (
    BASELINES,
    Agreeing,
    OwnersDecode,
    StaleExchange,
    exchange_of,
    pack_from_minimum,
)
from tutti.benchmarks.quality.settings import Setting
from tutti.kernels import low_rank

CPU = torch.device("cpu")
SHAPE = MatrixShape(rows=37, heads=3, head_dim=16)


def walk(steps: int) -> list[Tensor]:
    """bf16 ``[N, C]`` that move by a fifth of their size."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(SHAPE.rows, SHAPE.channels, generator=generator)
    found = []
    for _ in range(steps):
        found.append(value.bfloat16())
        value = value + 0.2 * torch.randn(value.shape, generator=generator)
    return found


def both_ends(preset: Preset, steps: list[Tensor]) -> list[Tensor]:
    """What the receiver works with in every step; it is what the sender knows of it, bit for bit."""
    watch = Watch(CPU)
    sender, receiver = (Channel([SHAPE], torch.bfloat16, CPU, preset.form, watch) for _ in range(2))
    got = []
    for x in steps:
        codec: Codec = preset.codec(is_key=sender.is_empty)
        payload, (known,) = sender.encode([x], codec)
        known = known.clone()
        (value,) = receiver.decode(payload, codec)
        assert torch.equal(value, known)
        got.append(value.clone())
    seen = watch.look()
    assert (seen.mismatches, seen.broken) == (0, 0)
    return got


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.float() - exact.float()).norm() / exact.float().norm())


class Post(DirectTransport):
    """Fake: all ranks in one process. What was sent between two of them arrives in its order, when somebody waits for it."""

    def __init__(self, rank: int, boxes: dict[tuple[int, int], list[Tensor]]) -> None:
        super().__init__("gloo")
        self.rank, self.boxes = rank, boxes
        self.expected: dict[int, int] = defaultdict(int)

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        for message in sent:
            self.boxes[self.rank, message.rank].append(message.tensor.clone())
        places = []
        for message in received:
            places.append((message, self.expected[message.rank]))
            self.expected[message.rank] += 1
        return Delivery(self, places)


class Delivery:
    def __init__(self, post: Post, places: list[tuple[Message, int]]) -> None:
        self.post, self.places = post, places

    def wait(self) -> None:
        for message, number in self.places:
            message.tensor.copy_(self.post.boxes[message.rank, self.post.rank][number])


def test_the_stale_exchange_gives_every_ranks_keys_of_the_call_before_and_the_first_calls_at_once() -> None:
    size, boxes = 3, defaultdict(list)
    ranks = [Axis(tuple(range(size)), rank, cast(ProcessGroup, object())) for rank in range(size)]
    alone = Axis((0,), 0, None)
    meshes = [
        SequenceMesh(Plan(ring=size), CPU, Post(rank, boxes), ulysses=alone, ring=axis, sequence=axis, cfg=alone)
        for rank, axis in enumerate(ranks)
    ]
    travelling: list[dict] = [{} for _ in ranks]
    for call in range(3):
        exchanges = [StaleExchange(mesh, 7, left) for mesh, left in zip(meshes, travelling, strict=True)]
        value = [torch.full((2, 1, 4, 2, 8), 10.0 * call + rank) for rank in range(size)]
        parcels = [exchange.pack(own) for exchange, own in zip(exchanges, value, strict=True)]
        for distance in range(1, size):
            parcels = [
                exchange.hop([Move(parcel=parcel, shift=1, landing=torch.empty_like(value[0]))])[0]
                for exchange, parcel in zip(exchanges, parcels, strict=True)
            ]
            for rank, parcel in enumerate(parcels):
                origin = (rank - distance) % size
                assert parcel.label.origin == origin
                assert (parcel.open() == 10.0 * max(call - 1, 0) + origin).all()


@pytest.mark.parametrize("name", BASELINES)
def test_a_first_call_travels_in_full_and_both_ends_know_the_same_after_every_other(name: str) -> None:
    steps = walk(5)
    got = both_ends(BASELINES[name], steps)
    assert torch.equal(got[0], steps[0])
    assert not any(torch.equal(ours, exact) for ours, exact in zip(got[1:], steps[1:], strict=True))


def test_stale_values_are_those_of_the_call_before() -> None:
    steps = walk(4)
    got = both_ends(BASELINES["stale"], steps)
    assert all(torch.equal(ours, before) for ours, before in zip(got[1:], steps[:-1], strict=True))


def test_one_bit_without_a_base_loses_half_and_one_bit_of_the_residual_a_fifth() -> None:
    steps = walk(6)
    naive, residual = (both_ends(BASELINES[name], steps)[-1] for name in ("naive-1bit", "cf-1bit"))
    assert error(naive, steps[-1]) == pytest.approx(0.60, abs=0.05), "of a normal variable: (1 - 2/pi)**0.5"
    assert error(residual, steps[-1]) < 0.25


def test_published_factors_have_our_sections_and_no_level_at_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(11, 4, generator=generator), torch.randn(7, 4, generator=generator)
    payload = pack_from_minimum(u, v)
    assert len(payload) == low_rank.payload_bytes(11, 7, 4)
    base = torch.zeros(11, 7)
    low_rank.add_decoded(payload, base)
    assert error(base, u @ v.mT) < 0.1
    assert not torch.equal(payload, low_rank.pack(u, v))


def test_whoever_owns_keys_works_with_the_exact_ones_unless_a_preset_says_otherwise() -> None:
    generator = torch.Generator().manual_seed(0)
    channels: dict[bool, dict] = {False: {}, True: {}}
    agreeing = exchange_of("own=decoded,residual=binary,key=raw,order=1")
    assert isinstance(agreeing, Agreeing)
    assert not isinstance(exchange_of("own=exact"), Agreeing)
    for first in (True, False):
        value = torch.randn(2, 1, 5, 2, 16, generator=generator).bfloat16()
        known = {}
        for decodes, hops in ((False, ResidualHops), (True, OwnersDecode)):
            call = ResidualCall(channels[decodes], agreeing, CPU, Watch(CPU), lambda _: True)
            payload, known[decodes] = hops(call, 0).encode(value, Label(0))
            assert (payload.numel() > value.nbytes / 2) is first
        assert known[False] is value
        same = all(torch.equal(ours, exact) for ours, exact in zip(known[True], value, strict=True))
        assert same is first, "a key frame in full loses nothing"


def test_a_preset_is_written_out() -> None:
    assert exchange_of("cf-2bit") is BASELINES["cf-2bit"]
    preset = exchange_of("order=2,residual=quaternary,key=key-int4,delayed=1,int8base=1")
    assert (preset.key, preset.residual) == ("key-int4", "quaternary")
    assert preset.form == StateForm(order=2, delayed_scales=True, int8_base=True)
    short, like = exchange_of("residual=ternary"), PRESETS["balanced"]
    assert (short.key, short.residual, short.form) == (like.key, "ternary", like.form)


@pytest.mark.parametrize(
    "text", ["", "cf-3bit", "order=3", "order=two", "residual=raw", "residual=zip", "order=1,order=2", "delayed"]
)
def test_what_is_no_exchange_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Name a baseline|Write 0 or 1|Predict|Take a codec"):
        exchange_of(text)


def test_a_setting_names_a_baseline_or_a_preset_for_a_compressed_plan() -> None:
    baseline = Setting.parse("cf 2-bit:plan=ring=2,dtype=BF16,baseline=cf-2bit")
    assert (baseline.exchange, baseline.plan.ring, baseline.dtype) == ("cf-2bit", 2, "BF16")
    assert not baseline.plan.exact
    preset = Setting.parse(
        "a:plan=ring=2,preset=order=2,residual=quaternary,key=key-int8,delayed=1,int8base=0,dtype=BF16"
    )
    assert exchange_of(preset.exchange).form == StateForm(order=2, delayed_scales=True)
    assert preset.plan == baseline.plan


@pytest.mark.parametrize(
    "text",
    [
        "a:plan=ring=2,baseline=cf-3bit",
        "a:plan=ring=2,preset=order=4",
        "a:plan=ring=2,compression=small,baseline=cf-2bit",
        "a:baseline=cf-2bit",
        "a:plan=ring=2,baseline=cf-2bit,order=2",
    ],
)
def test_a_setting_says_why_it_has_no_such_exchange(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(a: |Set plan)"):
        Setting.parse(text)


def test_a_baseline_gives_its_codecs_and_no_others() -> None:
    preset = BASELINES["cf-2bit"]
    assert preset.codec(is_key=True) is CODECS["raw"]
    assert preset.codec(is_key=False) is CODECS["quaternary-compactfusion"]
