"""Hops under way and hops that start later: order, failures, and waiting twice."""

from __future__ import annotations

import threading
from typing import cast

import pytest
import torch.distributed as dist
from tutti.backend.parallel.pending import HopUnderWay, LaterHop, OpenHops

DEADLINE_S = 10


class Gate:
    """A transfer that is over when it is told so."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def wait(self) -> None:
        assert self.opened.wait(DEADLINE_S)


class WaitedOnce:
    """A work as gloo's: it cannot be waited for again."""

    def __init__(self) -> None:
        self.waits = 0

    def wait(self) -> None:
        self.waits += 1
        assert self.waits == 1


def test_a_hop_may_be_waited_for_by_two() -> None:
    works = [WaitedOnce(), WaitedOnce()]
    hop = HopUnderWay([cast(dist.Work, work) for work in works])
    threads = [threading.Thread(target=hop.wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    hop.wait()
    assert [work.waits for work in works] == [1, 1]


def test_a_later_hop_starts_when_all_earlier_ones_are_over() -> None:
    first, second, started = Gate(), Gate(), threading.Event()

    def start() -> Gate:
        assert first.opened.is_set()
        assert second.opened.is_set()
        started.set()
        return last

    last = Gate()
    last.opened.set()
    hop = LaterHop(start, [first, second])
    first.opened.set()
    assert not started.is_set()
    second.opened.set()
    hop.wait()
    assert started.is_set()


def test_a_failure_of_an_earlier_hop_reaches_who_waits_for_the_later_one() -> None:
    class Gone:
        def wait(self) -> None:
            raise RuntimeError("the other rank has gone")

    hop = LaterHop(Gate, [Gone()])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="has gone"):
            hop.wait()


def test_a_hop_is_open_from_its_start_until_its_wait_has_returned() -> None:
    hops, works = OpenHops(), [WaitedOnce()]
    seen: list[int] = []

    def start() -> HopUnderWay:
        seen.append(hops.count)
        return HopUnderWay([cast(dist.Work, work) for work in works])

    first, second = hops.begin(start), hops.begin(lambda: Gate())
    assert (seen, hops.count) == ([1], 2)
    first.wait()
    first.wait()
    assert hops.count == 1, "waiting twice closes one hop"
    assert second is not first


def test_a_later_hop_is_open_from_its_promise() -> None:
    hops, earlier, last = OpenHops(), Gate(), Gate()
    first = hops.begin(lambda: earlier)
    hop = hops.begin(lambda: LaterHop(lambda: last, [first]))
    assert hops.count == 2, "it has not started"
    earlier.opened.set()
    last.opened.set()
    hop.wait()
    assert hops.count == 0, "its thread has waited for the first"


def test_a_hop_that_failed_stays_open() -> None:
    hops = OpenHops()

    class Gone:
        def wait(self) -> None:
            raise RuntimeError("the other rank has gone")

    def fail() -> Gate:
        raise RuntimeError("some transfers had been started")

    with pytest.raises(RuntimeError, match="has gone"):
        hops.begin(Gone).wait()
    with pytest.raises(RuntimeError, match="had been started"):
        hops.begin(fail)
    assert hops.count == 2
