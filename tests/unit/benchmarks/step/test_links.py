"""The model of a link: latency and rate, and what of it can hide behind attention."""

from __future__ import annotations

import pytest
from tutti.benchmarks.step.links import LINKS, Link, Transfer, communication

LINK = Link(name="test", gigabytes_per_s=2.0, latency_us=100)


@pytest.mark.parametrize(("sent_bytes", "took_ms"), [(0, 0.0), (1, 0.1000005), (2_000_000, 1.1), (200_000_000, 100.1)])
def test_a_transfer_takes_its_latency_and_its_bytes_over_the_rate(sent_bytes: int, took_ms: float) -> None:
    assert LINK.transfer_ms(sent_bytes) == pytest.approx(took_ms, rel=1e-9)


def test_hops_hide_behind_attention_and_all_to_alls_do_not() -> None:
    hop, exchange = Transfer(kind="hop", sent_bytes=2_000_000), Transfer(kind="all-to-all", sent_bytes=2_000_000)
    waited = communication([hop, exchange, hop], LINK, chunk_attention_ms=0.0)
    assert waited.serial_ms == waited.exposed_ms == pytest.approx(3.3)
    half = communication([hop, exchange, hop], LINK, chunk_attention_ms=0.6)
    assert (half.serial_ms, half.exposed_ms) == (pytest.approx(3.3), pytest.approx(2.1))
    hidden = communication([hop, exchange, hop], LINK, chunk_attention_ms=5.0)
    assert (hidden.serial_ms, hidden.exposed_ms) == (pytest.approx(3.3), pytest.approx(1.1))


def test_a_step_without_transfers_costs_nothing() -> None:
    nothing = communication([], LINK, chunk_attention_ms=1.0)
    assert (nothing.serial_ms, nothing.exposed_ms) == (0.0, 0.0)


def test_known_links_are_ordered_as_everybody_knows_them() -> None:
    large = [LINKS[name].transfer_ms(10_000_000) for name in ("nvlink", "pcie5", "pcie4", "100gbe", "10gbe")]
    assert large == sorted(large)


@pytest.mark.parametrize(("rate", "latency"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -1.0)])
def test_a_link_of_no_rate_is_refused(rate: float, latency: float) -> None:
    with pytest.raises(ValueError, match="rate above 0"):
        Link(name="broken", gigabytes_per_s=rate, latency_us=latency)
