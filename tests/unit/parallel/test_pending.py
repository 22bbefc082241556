"""Hops under way and hops that start later: order, failures, and waiting twice."""

from __future__ import annotations

import threading
from typing import cast

import pytest
import torch.distributed as dist
from tutti.backend.parallel.pending import HopUnderWay, LaterHop

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
