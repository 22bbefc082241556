"""Parcels opened ahead: who decodes, when, and under which settings; the same bits as in place; failures, and what stays behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from tutti.backend.compression.policy import Preset
from tutti.backend.compression.state import StateForm
from tutti.backend.parallel.ahead import DecodingThread
from tutti.backend.parallel.exchange import Label, RawCodec, Value
from tutti.backend.parallel.residual import ResidualHops

from tests.support.bits import same_bits_or_nan
from tests.support.gated_ring import DEADLINE_S, GatedLink, InPlace, Receiver, Sender, hashes_from

PRESETS = [
    *(Preset(name=name, key="key-int8", residual=name) for name in ("binary", "ternary", "int4", "fp8", "low-rank")),
    Preset(name="order 2", key="key-int4", residual="quaternary", form=StateForm(order=2, delayed_scales=True)),
    Preset(name="8-bit base", key="raw", residual="int8", form=StateForm(int8_base=True)),
]


class Watched(ResidualHops):
    """Says who decodes, and when somebody has."""

    decoded: threading.Event
    by: list[threading.Thread]

    def decoder(self, landing: Tensor, label: Label) -> Callable[[Tensor], Value]:
        decode = super().decoder(landing, label)

        def watched(payload: Tensor) -> Value:
            value = decode(payload)
            self.by.append(threading.current_thread())
            self.decoded.set()
            return value

        return watched


class WatchedInPlace(InPlace, Watched):
    """The control."""

    def decode(self, payload: Tensor, landing: Tensor, label: Label) -> Value:
        return Watched.decoder(self, landing, label)(payload)


def values(step: int, lanes: int = 1) -> list[Tensor]:
    """Keys and values ``[2, B, n, H, D]`` that move, for each lane."""
    start, motion = torch.randn(2, lanes, 2, 2, 5, 3, 16, generator=torch.Generator().manual_seed(3))
    return list((start + 0.2 * step * motion).bfloat16())


@pytest.mark.parametrize("kind", [Watched, WatchedInPlace])
def test_what_arrived_is_decoded_before_anybody_asks_for_it(kind: type[Watched]) -> None:
    link = GatedLink()
    receiver, kind.decoded, kind.by = Receiver(link), threading.Event(), []
    link.payloads = Sender().payloads(PRESETS[0], values(0))
    (parcel,) = receiver.hop(PRESETS[0], values(0), kind)
    assert not kind.decoded.is_set(), "it is still on its way"
    link.gate.set()
    if kind is Watched:  # this thread is busy
        assert kind.decoded.wait(DEADLINE_S)
    opened = parcel.open_parts()
    assert [thread is threading.main_thread() for thread in kind.by] == [kind is WatchedInPlace]
    assert all(same_bits_or_nan(a, b) for a, b in zip(opened, parcel.open_parts(), strict=True)), "opened once"
    assert len(kind.by) == 1


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_values_and_bases_are_the_same_bits_as_those_of_parcels_opened_in_place(preset: Preset) -> None:
    sender, receivers = Sender(), {kind: Receiver(GatedLink()) for kind in (ResidualHops, InPlace)}
    known = []
    for step in range(6):
        payloads, opened = sender.payloads(preset, values(step, lanes=2)), []
        for kind, receiver in receivers.items():
            receiver.link.payloads = payloads
            receiver.link.gate.set()
            opened.append([parcel.open_parts() for parcel in receiver.hop(preset, values(step, lanes=2), kind)])
        for ours, in_place in zip(*opened, strict=True):
            assert all(same_bits_or_nan(a, b) for a, b in zip(ours, in_place, strict=True))
        hashes = [hashes_from(0, store) for store in (sender.store, *(end.store for end in receivers.values()))]
        assert hashes[0] == hashes[1] == hashes[2]
        assert len(hashes[0]) == 2
        known.append(hashes[0])
        seen = [receiver.store.look("t") for receiver in receivers.values()]
        assert [(found.mismatches, found.broken) for found in seen] == [(0, 0)] * 2
    assert len({tuple(hashes.values()) for hashes in known}) == len(known), "the control: every step changes them"


def test_a_payload_of_other_bases_is_counted_by_whoever_decodes_it() -> None:
    sender, receiver = Sender(), Receiver(GatedLink())
    receiver.link.gate.set()
    for step in range(3):
        receiver.link.payloads = sender.payloads(PRESETS[0], values(step))
        if step != 1:  # lost
            for parcel in receiver.hop(PRESETS[0], values(step), ResidualHops):
                parcel.open_parts()
            assert receiver.store.look("t").mismatches == (step == 2)


def test_a_hop_that_fails_is_raised_by_whoever_opens_its_parcel_every_time() -> None:
    link = GatedLink()
    (parcel,) = Receiver(link).hop(PRESETS[0], values(0), ResidualHops)
    link.failure = RuntimeError("the other rank has gone")
    link.gate.set()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="has gone"):
            parcel.open_parts()


def test_a_hop_that_never_comes_holds_up_no_other_parcel() -> None:
    """A call that failed left it to the thread."""
    stuck, link = GatedLink(), GatedLink()
    Receiver(stuck).hop(PRESETS[0], values(0), ResidualHops)
    link.payloads = Sender().payloads(PRESETS[0], values(0))
    link.gate.set()
    (parcel,) = Receiver(link).hop(PRESETS[0], values(0), ResidualHops)
    assert len(parcel.open_parts()) == 2
    stuck.failure = RuntimeError("nobody waits for it")
    stuck.gate.set()


def test_values_that_travel_raw_need_no_thread() -> None:
    def decoders() -> int:
        return sum(thread.name == "tutti-opens-ahead" for thread in threading.enumerate())

    link = GatedLink()
    (raw,) = Receiver(link).hop(PRESETS[0], values(0), lambda call, layer: RawCodec())
    assert decoders() == 0
    link.payloads = values(0)
    link.gate.set()
    assert torch.equal(raw.open(), values(0)[0])
    link.payloads = Sender().payloads(PRESETS[0], values(0))
    (parcel,) = Receiver(link).hop(PRESETS[0], values(0), ResidualHops)
    assert decoders() == 1, "the control"
    parcel.open_parts()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_work_runs_as_it_would_where_it_comes_from(mode: Callable[[], object], threads: int) -> None:
    """All three settings belong to a thread; one that has worked under others before is no exception."""

    def settings() -> tuple[int, bool, bool, threading.Thread]:
        found = torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        done.set()
        return *found, threading.current_thread()

    worker, before, done = DecodingThread(idle_s=0.01), torch.get_num_threads(), threading.Event()
    first = worker.begin(settings)
    assert done.wait(DEADLINE_S)
    first()
    done.clear()
    try:
        torch.set_num_threads(threads)
        with mode():  # type: ignore[attr-defined]
            value = worker.begin(settings)
            assert done.wait(DEADLINE_S)
            *theirs, thread = value()
            *ours, _ = settings()
    finally:
        torch.set_num_threads(before)
    assert theirs == ours
    assert thread is not threading.current_thread()


def test_work_that_waits_for_its_turn_is_done_by_whoever_asks_for_it_and_only_once() -> None:
    worker, gate, begun = DecodingThread(idle_s=0.01), threading.Event(), threading.Event()
    ran: list[threading.Thread] = []

    def blocks() -> bool:
        begun.set()
        return gate.wait(DEADLINE_S)

    first = worker.begin(blocks)
    assert begun.wait(DEADLINE_S)
    second = worker.begin(lambda: ran.append(threading.current_thread()))
    second()
    assert ran == [threading.current_thread()]
    gate.set()
    assert first()
    last = threading.Event()
    worker.begin(last.set)
    assert last.wait(DEADLINE_S)
    assert len(ran) == 1, "the thread has passed it over"


def test_the_thread_goes_on_after_a_failure_ends_when_idle_and_starts_again() -> None:
    worker, threads = DecodingThread(idle_s=0.01), []
    for _ in range(2):
        done = threading.Event()

        def fail(done: threading.Event = done) -> None:
            threads.append(threading.current_thread())
            done.set()
            raise KeyError("broken")

        with pytest.raises(KeyError):
            value = worker.begin(fail)
            assert done.wait(DEADLINE_S)
            value()
        after = threading.Event()
        worker.begin(after.set)
        assert after.wait(DEADLINE_S)
        threads[-1].join(DEADLINE_S)
        assert not threads[-1].is_alive()
    assert threads[0] is not threads[1]
    assert all(thread.daemon for thread in threads)


def test_nothing_of_what_was_decoded_stays_with_the_thread() -> None:
    """Nor with whoever dropped a value without asking for it."""
    worker, done = DecodingThread(idle_s=0.01), threading.Event()
    gc.disable()  # what only the collector finds may stay for long
    try:
        for asks in (True, False):
            tensor = torch.zeros(3)
            value = worker.begin(lambda tensor=tensor: tensor + 1)
            kept = weakref.ref(tensor)
            if asks:
                value()
            assert kept() is not None
            del tensor, value
            done.clear()
            worker.begin(done.set)
            assert done.wait(DEADLINE_S)
            assert kept() is None
    finally:
        gc.enable()
