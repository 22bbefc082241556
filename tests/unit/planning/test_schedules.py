"""The choice of a ring's schedule: what each kind of link calls for."""

from __future__ import annotations

import itertools

import pytest
from tutti.backend.errors import InternalError
from tutti.backend.planning.schedules import Links, RingWork, Topology, choose_schedule, predicted_s

MIB = 2**20
FAST, SLOW = 1e15, 1e9


def work(*, ranks: int = 4, attend_s: float = 1e-3, queries: float = 8 * MIB, keys: float = 8 * MIB) -> RingWork:
    """Queries and keys of one rank, in bytes; a result is a little larger than its queries."""
    return RingWork(
        ranks=ranks, attend_s=attend_s, query_bytes=int(queries), key_value_bytes=int(2 * keys),
        result_bytes=int(queries * 1.02),
    )  # fmt: skip


def links(topology: Topology, bytes_per_s: float = SLOW, latency_s: float = 0.0) -> Links:
    return Links(topology=topology, bytes_per_s=bytes_per_s, latency_s=latency_s)


def test_nothing_known_of_the_links_means_the_default() -> None:
    assert choose_schedule(work(), None) == "ring"


EVERYTHING = list(itertools.product((2, 3, 4, 8), (0.0, 1e-5, 1e-3, 1e-1), (0.1, 1, 10), (1e8, 1e9, 1e11), (0.0, 1e-3)))


def test_a_single_port_never_gets_a_second_direction() -> None:
    for ranks, attend_s, ratio, bytes_per_s, latency_s in EVERYTHING:
        case = work(ranks=ranks, attend_s=attend_s, queries=8 * MIB * ratio)
        assert choose_schedule(case, links(Topology.SINGLE_PORT, bytes_per_s, latency_s)) == "ring"


def test_the_same_work_gets_one_on_other_links() -> None:
    """Negative control of the test above."""
    chosen = {
        choose_schedule(work(ranks=ranks, attend_s=attend_s, queries=8 * MIB * ratio), links(topology, speed, latency))
        for ranks, attend_s, ratio, speed, latency in EVERYTHING
        for topology in Topology
    }
    assert chosen == {"ring", "bidirectional", "tokenring"}


def test_neighbours_alone_never_get_tokenring() -> None:
    for ranks, attend_s, ratio, bytes_per_s, latency_s in EVERYTHING:
        case = work(ranks=ranks, attend_s=attend_s, queries=8 * MIB * ratio)
        assert choose_schedule(case, links(Topology.DUPLEX_NEIGHBOURS, bytes_per_s, latency_s)) != "tokenring"


def test_slow_duplex_neighbours_get_both_directions_and_fast_ones_the_default() -> None:
    assert choose_schedule(work(), links(Topology.DUPLEX_NEIGHBOURS, SLOW)) == "bidirectional"
    assert choose_schedule(work(), links(Topology.DUPLEX_NEIGHBOURS, FAST)) == "ring"


def test_two_ranks_have_one_link_and_get_the_default() -> None:
    assert choose_schedule(work(ranks=2), links(Topology.DUPLEX_MESH, SLOW)) == "ring"


@pytest.mark.parametrize(
    ("queries", "keys", "expected"),
    [(1 * MIB, 8 * MIB, "tokenring"), (8 * MIB, 8 * MIB, "bidirectional"), (8 * MIB, 1 * MIB, "bidirectional")],
)
def test_few_queries_travel_and_few_keys_do(queries: int, keys: int, expected: str) -> None:
    """With as many queries as keys both send the same, and tokenring has its tail on top."""
    assert choose_schedule(work(queries=queries, keys=keys), links(Topology.DUPLEX_MESH)) == expected


def test_a_gain_within_the_models_error_is_left_alone() -> None:
    barely = work(attend_s=16 * MIB / SLOW * 0.99)
    assert choose_schedule(barely, links(Topology.DUPLEX_NEIGHBOURS)) == "ring"


def test_the_predictions_are_the_formulas() -> None:
    """4 ranks, 1 s per chunk, keys and values of 4 s, queries of 2 s and results of 3 s, 0.5 s latency."""
    case = RingWork(ranks=4, attend_s=1, query_bytes=2, key_value_bytes=4, result_bytes=3)
    mesh = links(Topology.DUPLEX_MESH, 1, 0.5)
    assert predicted_s("ring", case, mesh) == 3 * 4.5 + 1
    assert predicted_s("bidirectional", case, mesh) == 3 * 2.5 + 1
    assert predicted_s("tokenring", case, mesh) == 3 * 3.5 + 1 + 3.5
    assert predicted_s("prefetch-2", case, mesh) is None


def test_impossible_facts_are_refused() -> None:
    with pytest.raises(InternalError, match="at least 2 ranks"):
        work(ranks=1)
    with pytest.raises(InternalError, match="bandwidth above 0"):
        links(Topology.DUPLEX_MESH, 0)
