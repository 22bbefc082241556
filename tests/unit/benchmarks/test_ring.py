"""The ring benchmark's parts: how long an emulated link takes, what a timeline calls hidden, and which figures are promised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch.distributed import ProcessGroup
from tutti.backend.parallel.pending import Pending
from tutti.backend.parallel.transport import DirectTransport, Message
from tutti.benchmarks.emulated_links import EmulatedLinks, ThrottledTransport
from tutti.benchmarks.report import read_targets
from tutti.benchmarks.ring import BENCHMARK, COMPUTE, HOP_S, SETTINGS, figures_of
from tutti.benchmarks.timeline import Span, Timeline

GROUP = cast(ProcessGroup, object())


class Mirror(DirectTransport):
    """Delivers to a rank what it sends itself, in the order of the lists."""

    def hop(
        self, received: Sequence[Message], sent: Sequence[Message], group: ProcessGroup, after: Sequence[Pending] = ()
    ) -> Pending:
        for landing, message in zip(received, sent, strict=True):
            landing.tensor.copy_(message.tensor)
        self.sent_bytes += sum(message.tensor.nbytes for message in sent)
        return Done()


class Done:
    def wait(self) -> None:
        pass


def span_of(links: EmulatedLinks, ranks: Sequence[int]) -> Span:
    """One hop with a message of 100 bytes to each of these ranks."""
    timeline = Timeline()
    transport = ThrottledTransport(Mirror("gloo"), links, timeline)
    sent = [Message(torch.ones(100, dtype=torch.uint8), rank) for rank in ranks]
    received = [Message(torch.zeros(100, dtype=torch.uint8), rank) for rank in ranks]
    transport.hop(received, sent, GROUP).wait()
    assert all(message.tensor.all() for message in received)
    assert transport.sent_bytes == 100 * len(ranks)
    return timeline.transfers[0]


@pytest.mark.parametrize(
    ("single_port", "ranks", "messages"),
    [(False, [1], 1), (False, [1, 2], 1), (False, [1, 1], 2), (True, [1, 2], 2), (True, [1, 2, 3], 3)],
)
def test_messages_queue_for_a_link_of_their_own_or_for_the_one_port(
    single_port: bool, ranks: list[int], messages: int
) -> None:
    links = EmulatedLinks(bytes_per_s=10_000, latency_s=0.02, single_port=single_port)
    assert span_of(links, ranks).length_s == pytest.approx(messages * 0.01 + 0.02)  # computed, not slept


def test_hidden_is_the_share_of_the_shorter_one() -> None:
    timeline = Timeline(
        transfers={0: Span(0, 4), 1: Span(10, 12), 2: Span(20, 21)},
        attentions=[Span(1, 3), Span(11, 15), Span(21, 22), Span(23, 24)],
    )
    assert timeline.hidden() == [1.0, 0.5, 0.0]


def test_every_promise_is_measured_and_ratios_are_of_one_round() -> None:
    times = {
        (case, contestant): [HOP_S * (place + 1) * slowness for slowness in (1, 10, 100)]
        for case, setting in SETTINGS.items()
        for place, contestant in enumerate(setting.contestants)
    }
    figures = figures_of(times)
    targets = read_targets(BENCHMARK)
    assert len(targets) == 4
    assert not [target for target in targets if "not measured" in (target.shortfall(figures) or "")]
    (serial,) = [figure for figure in figures if figure.metric == "serial ring / sum of attentions"]
    assert (serial.spread.p20, serial.value, serial.baseline) == (2, 2, COMPUTE)
