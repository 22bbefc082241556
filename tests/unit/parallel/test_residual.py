"""Compressed exchange against the raw one: the same tensors in the same places, sizes that both ends know before anything travels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from tutti.backend.compression.policy import Preset
from tutti.backend.compression.state import MatrixShape
from tutti.backend.compression.store import ResidualCall, ResidualStore
from tutti.backend.parallel.exchange import Exchange, HeadCodec, Label, RawCodec
from tutti.backend.parallel.mesh import Axis, SequenceMesh
from tutti.backend.parallel.plan import Plan
from tutti.backend.parallel.residual import ResidualHeads, ResidualHops
from tutti.backend.parallel.ulysses import gather_heads, scatter_heads

from tests.support.bits import same_bits_or_nan

CPU = torch.device("cpu")
EXACT_AT_FIRST = Preset(name="test", key="raw", residual="int8")
SMALL = Preset(name="small", key="key-int4", residual="low-rank")
BATCH, HEADS, HEAD_DIM = 2, 6, 5
HELD = (4, 0, 3)
"""Tokens of each of three ranks."""


class FakeLinks:
    """What lies between the ranks of one ulysses axis: threads of this process, which meet at every transfer."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.sent: dict[int, list[Tensor]] = {}


class FakeTransport:
    """One rank's end of :class:`FakeLinks`: an all-to-all that insists on sizes which match."""

    def __init__(self, links: FakeLinks, rank: int) -> None:
        self._links, self._rank = links, rank
        self.sent_bytes = 0

    def all_to_all(
        self, received: Tensor, sent: Tensor, received_splits: Sequence[int], sent_splits: Sequence[int], group: Any
    ) -> None:
        self._links.sent[self._rank] = list(torch.split(sent, list(sent_splits)))
        self._links.barrier.wait()
        for peer, part in enumerate(torch.split(received, list(received_splits))):
            part.copy_(self._links.sent[peer][self._rank], non_blocking=False)
            assert part.shape == self._links.sent[peer][self._rank].shape
            self.sent_bytes += part.nbytes * (peer != self._rank)
        self._links.barrier.wait()
        sent.fill_(0)  # the buffer may be anybody's now
        self._links.barrier.wait()


def mesh(links: FakeLinks, rank: int) -> SequenceMesh:
    size = links.barrier.parties
    alone, all_ranks = Axis((rank,), 0, None), Axis(tuple(range(size)), rank, object())  # type: ignore[arg-type]
    transport = FakeTransport(links, rank)
    return SequenceMesh(
        plan=Plan(ulysses=size),
        device=CPU,
        transport=transport,  # type: ignore[arg-type]
        ulysses=all_ranks,
        ring=alone,
        sequence=all_ranks,
        cfg=alone,
    )


def there_and_back(
    own_mesh: SequenceMesh, codec: HeadCodec, tensors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """What an attention gets, and what comes back of a result made of it."""
    rank, exchange = own_mesh.ulysses.index, Exchange(own_mesh, codec)
    q, k, v = (torch.split(x, list(HELD), 1)[rank] for x in tensors)
    got = scatter_heads(q, k, v, HELD, exchange)
    return got, gather_heads(got[0] + got[1] * got[2], HELD, rank, exchange)


def tensors(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    x, motion = torch.randn(2, 3, BATCH, sum(HELD), HEADS, HEAD_DIM, generator=generator)
    return list((x + 0.1 * step * motion).bfloat16())


def test_the_all_to_all_brings_every_token_and_head_to_where_the_raw_one_does() -> None:
    links = FakeLinks(len(HELD))

    def run(rank: int) -> list[tuple[Any, Any, int]]:
        own_mesh, store, found = mesh(links, rank), ResidualStore(CPU, 2**30), []
        for step in range(4):
            call = store.begin_call("t", 0, EXACT_AT_FIRST, largest_bytes=0)
            assert call is not None
            raw = there_and_back(own_mesh, RawCodec(), tensors(step))
            before = own_mesh.transport.sent_bytes
            ours = there_and_back(own_mesh, ResidualHeads(call, layer=1), tensors(step))
            found.append((ours, raw, own_mesh.transport.sent_bytes - before))
        assert store.look("t").mismatches == 0
        return found

    with ThreadPoolExecutor(len(HELD)) as pool:
        ranks = list(pool.map(run, range(len(HELD))))
    for found in ranks:
        for step, ((got, back), (raw_got, raw_back), _) in enumerate(found):
            for ours, exact in zip([*got, back], [*raw_got, raw_back], strict=True):
                assert ours.shape == exact.shape
                if step == 0:
                    assert same_bits_or_nan(ours, exact), "raw key frames lose nothing"
                elif exact.numel():
                    assert 0 < float((ours.float() - exact.float()).abs().max()) < 0.05, (
                        "the control: they are approximate"
                    )
        (_, _, first), (_, _, second), *_ = found
        assert second < first


def test_a_hop_decodes_to_what_its_owner_knows_the_others_have_and_has_the_size_that_was_expected() -> None:
    """The owner works with its own numbers. Two lanes, and payloads that are asked for a hop before they are decoded, as two ahead does."""
    owner, other = (ResidualStore(CPU, 2**30) for _ in range(2))
    for preset in (EXACT_AT_FIRST, SMALL):
        for step in range(3):
            ends = [store.begin_call(preset.name, 0, preset, largest_bytes=0) for store in (owner, other)]
            sender, receiver = (ResidualHops(call, layer=1) for call in ends if call)
            values = [torch.stack(tensors(step)[1:])[:, :, :, :3], torch.stack(tensors(step)[1:])[:, :, :5, 3:]]
            sent = [sender.encode(value, Label(2, lane)) for lane, value in enumerate(values)]
            landings = [value.new_empty(value.shape) for value in values]
            expected = [receiver.payload_for(landing, Label(2, lane)) for lane, landing in enumerate(landings)]
            for lane, (payload, known) in enumerate(sent):
                assert expected[lane].shape == payload.shape
                expected[lane].copy_(payload)
                got = receiver.decode(expected[lane], landings[lane], Label(2, lane))
                assert known is values[lane]
                if step == 0 and preset is EXACT_AT_FIRST:
                    assert all(same_bits_or_nan(a, b) for a, b in zip(got, values[lane], strict=True))
            assert owner.hashes(preset.name) == other.hashes(preset.name)
        assert other.look(preset.name).mismatches == 0


def test_a_value_of_one_layer_is_not_touched_by_transfers_of_another_lane_origin_layer_or_part() -> None:
    """It is a view of a base, and an attention may still run on it."""
    store = ResidualStore(CPU, 2**30)

    def call() -> ResidualCall:
        begun = store.begin_call("t", 0, EXACT_AT_FIRST, largest_bytes=0)
        assert begun is not None
        return begun

    value, another = torch.stack(tensors(0)[1:]), torch.stack(tensors(9)[1:])

    def get(call: ResidualCall, layer: int, label: Label, value: Tensor) -> tuple[Tensor, ...]:
        """What arrives, from an owner who is always at his first call."""
        begun = ResidualStore(CPU, 2**30).begin_call("t", 0, EXACT_AT_FIRST, largest_bytes=0)
        assert begun is not None
        return tuple(ResidualHops(call, layer).decode(ResidualHops(begun, layer).encode(value, label)[0], value, label))

    first = call()
    known = get(first, 1, Label(0, 0), value)
    kept = [x.clone() for x in known]
    for layer, part, label in [(1, 0, Label(0, 1)), (1, 0, Label(1, 0)), (2, 0, Label(0, 0)), (1, 1, Label(0, 0))]:
        get(first.part(part), layer, label, another)
        assert all(same_bits_or_nan(a, b) for a, b in zip(known, kept, strict=True))
    again = store.begin_call("t", 0, EXACT_AT_FIRST, largest_bytes=0, is_key=True)
    assert again is not None
    get(again, 1, Label(0, 0), another)
    assert all(same_bits_or_nan(a, b) for a, b in zip(known, kept, strict=True)), "nor by those that begin anew"
    held = get(again, 2, Label(0, 0), value)
    channel, codec = again.channel((2, "ring", 0, 0), [MatrixShape(rows=14, heads=6, head_dim=5)] * 2, value.dtype)
    channel.encode([x.flatten(0, 1).flatten(1) for x in another], codec)
    kept, known = [x.clone() for x in value], held
    assert not all(same_bits_or_nan(a, b) for a, b in zip(known, kept, strict=True)), (
        "the control: the next transfer of its channel does"
    )


@pytest.mark.parametrize("lane", [0, 1])
def test_nothing_travels_where_there_is_no_token(lane: int) -> None:
    store = ResidualStore(CPU, 2**30)
    call = store.begin_call("t", 0, SMALL, largest_bytes=0)
    assert call is not None
    hops, empty = ResidualHops(call, layer=1), torch.empty(2, BATCH, 0, HEADS, HEAD_DIM)
    payload, known = hops.encode(empty, Label(0, lane))
    assert payload.shape == hops.payload_for(empty, Label(0, lane)).shape == (0,)
    landing = hops.landing(empty, empty.shape)
    assert landing.device.type == "meta", "the shape alone: values land in their bases"
    value = hops.decode(payload, landing, Label(0, lane))
    assert isinstance(value, Tensor)
    assert (value.shape, value.dtype, value.device) == (empty.shape, empty.dtype, empty.device)
    assert known is empty
    assert store.bytes_of("t") == 0
