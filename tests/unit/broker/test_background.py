"""The helper thread: first in, first out, and it wakes the main loop."""

from __future__ import annotations

import logging
import select
import threading

import pytest
from tutti.backend.broker.background import Background

DEADLINE_S = 20.0


def collect(background: Background, done: list[int], count: int) -> None:
    while len(done) < count:
        readable, _, _ = select.select([background.fd], [], [], DEADLINE_S)
        assert readable, "nobody woke us"
        background.collect()


def test_work_is_done_in_order_and_its_follow_up_runs_here() -> None:
    background, done, here = Background("test"), [], []  # type: ignore[var-annotated]
    for number in range(200):

        def follow(number: int = number) -> None:
            done.append(number)
            here.append(threading.current_thread() is threading.main_thread())

        background.ask(lambda follow=follow: follow)
    collect(background, done, 200)
    assert done == list(range(200))
    assert all(here)
    background.close()


def test_work_that_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    background, done = Background("test"), []  # type: ignore[var-annotated]
    with caplog.at_level(logging.ERROR):
        background.ask(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        background.ask(lambda: lambda: done.append(1))
        collect(background, done, 1)
    assert "ZeroDivisionError" in caplog.text
    background.close()


def test_closing_drops_what_was_not_begun() -> None:
    background, begun, go = Background("test"), threading.Event(), threading.Event()
    ran: list[int] = []

    def slow() -> object:
        begun.set()
        go.wait(DEADLINE_S)
        return lambda: None

    background.ask(slow)  # type: ignore[arg-type]
    background.ask(lambda: ran.append(1))  # type: ignore[arg-type,func-returns-value,return-value]
    begun.wait(DEADLINE_S)
    threading.Timer(0.1, go.set).start()
    background.close()
    assert ran == []
