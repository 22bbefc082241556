"""The control vector: one pure function of everybody's rows, and a gate that nobody passes alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from tutti.backend.compression.policy import LAYER_GROUPS
from tutti.backend.errors import BadRequest, Draining, InternalError, JobCancelled, OutOfMemory
from tutti.backend.parallel.group import CONTROL_WORDS
from tutti.backend.worker.control import PROTOCOL, WORDS, Action, CallGate, OutOfStep, ResidualNews, Row, decide


def rows(*given: Row) -> list[list[int]]:
    return [row.words() for row in given]


def row(action: Action = Action.CONTINUE, error: str = "", *, sequence: int = 7, call: int = 3) -> Row:
    return Row(sequence=sequence, call=call, action=action, error=error)


def test_a_row_is_eighty_words_as_the_protocol_page_lists_them() -> None:
    words = row(Action.CANCEL, "out_of_memory").words()
    assert len(words) == WORDS == CONTROL_WORDS == 16 + LAYER_GROUPS == 80
    assert words[:4] == [PROTOCOL, 7, 3, 1]
    assert words[4] > 0
    assert words[5:] == [0] * 75
    assert row().words()[4] == 0


def test_ranks_that_ask_for_nothing_go_on() -> None:
    decision = decide(rows(row(), row(), row()))
    assert (decision.action, decision.error) == (Action.CONTINUE, "")


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("action", [Action.CANCEL, Action.DRAIN])
def test_one_rank_that_asks_to_leave_is_enough(action: Action, place: int) -> None:
    asked = [row(), row(), row()]
    asked[place] = row(action)
    assert decide(rows(*asked)).action is action


def test_a_cancel_goes_before_a_drain_whoever_asks() -> None:
    for order in itertools.permutations([Action.CANCEL, Action.DRAIN, Action.CONTINUE]):
        assert decide(rows(*map(row, order))).action is Action.CANCEL


def test_an_error_of_every_rank_is_agreed_on_and_goes_before_any_action() -> None:
    decision = decide(rows(row(Action.CANCEL, "out_of_memory"), row(error="out_of_memory")))
    assert decision.error == "out_of_memory"


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (row(error="out_of_memory"), "same error"),
        (row(call=4), "rank 1 is at call 4 of job 7, rank 0 at call 3"),
        (row(sequence=8), "of job 8"),
        (row(Action.YIELD), "unknown action"),
    ],
    ids=["an error of one rank", "another call", "another job", "a reserved action"],
)
def test_ranks_that_are_not_at_the_same_place_end_the_group(other: Row, complaint: str) -> None:
    with pytest.raises(OutOfStep, match=complaint):
        decide(rows(row(), other))


def test_different_errors_end_the_group() -> None:
    with pytest.raises(OutOfStep, match="same error"):
        decide(rows(row(error="internal"), row(error="out_of_memory")))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (0, PROTOCOL + 1),
        (4, 10_000),
        (4, -1),
        (3, 9),
        (5, 3),
        (5, -1),
        (7, -1),
        (8, 1),
        (8, -1),
        (9, -1),
        (10, 1),
        (15, 1),
        (16, -1),
        (79, -1),
    ],
)
def test_words_that_no_rank_of_this_release_writes_end_the_group(word: int, value: int) -> None:
    strange = rows(row(), row())
    for words in strange:
        words[word] = value
    with pytest.raises(OutOfStep):
        decide(strange)


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=WORDS, max_size=WORDS), min_size=1, max_size=4))
def test_any_rows_give_a_decision_or_end_the_group(words: list[list[int]]) -> None:
    try:
        decide(words)
    except OutOfStep:
        return


class Peers:
    """The other rank, played: its rows are given, its exchange is immediate."""

    def __init__(self, *theirs: Row) -> None:
        self.theirs = list(theirs)
        self.mine: list[list[int]] = []

    def exchange(self, vector: Tensor) -> Callable[[], Tensor]:
        self.mine.append(vector.tolist())
        return lambda: torch.stack([vector, torch.tensor(self.theirs.pop(0).words())])


def gate(peers: Peers, asks: Callable[[], Action] = lambda: Action.CONTINUE, log: list[str] | None = None) -> CallGate:
    waits: Callable[[], None] = lambda: log.append("device") if log is not None else None  # noqa: E731
    return CallGate(exchange=peers.exchange, asks=asks, wait_for_device=waits, sequence=7, call=0)


def test_every_pass_counts_one_call() -> None:
    peers = Peers(row(call=0), row(call=1))
    passed = gate(peers)
    passed.enter()
    passed.enter()
    assert passed.call == 2
    assert [words[2] for words in peers.mine] == [0, 1]


@pytest.mark.parametrize(("action", "error"), [(Action.CANCEL, JobCancelled), (Action.DRAIN, Draining)])
def test_a_rank_that_hears_of_a_cancel_from_another_one_leaves_before_the_call(
    action: Action, error: type[Exception]
) -> None:
    closed = gate(Peers(row(action, call=0)))
    with pytest.raises(error):
        closed.enter()
    assert closed.call == 0


def test_what_this_rank_asks_is_asked_anew_before_every_call() -> None:
    answers = iter([Action.CONTINUE, Action.CANCEL])
    asking = gate(Peers(row(call=0), row(call=1)), asks=lambda: next(answers))
    asking.enter()
    with pytest.raises(JobCancelled):
        asking.enter()


def test_a_failure_of_all_ranks_is_agreed_on_after_the_device_has_finished() -> None:
    order: list[str] = []
    gate(Peers(row(error="out_of_memory", call=0)), log=order).agree_on(OutOfMemory("x"))
    assert order == ["device"]


@pytest.mark.parametrize("theirs", [row(call=0), row(call=1), row(call=0, error="internal")])
def test_a_failure_of_this_rank_alone_ends_the_group(theirs: Row) -> None:
    with pytest.raises(OutOfStep):
        gate(Peers(theirs)).agree_on(OutOfMemory("x"))


def test_an_exchange_that_was_started_early_is_the_one_of_the_next_call() -> None:
    peers, asked = Peers(row(call=0), row(call=1)), iter([Action.CONTINUE, Action.CANCEL])
    early = gate(peers, asks=lambda: next(asked))
    early.start()
    early.enter()
    assert (early.call, len(peers.mine)) == (1, 1)
    with pytest.raises(JobCancelled):
        early.enter()


def test_a_cancel_heard_by_an_early_exchange_keeps_everybody_out_of_the_call() -> None:
    early = gate(Peers(row(Action.CANCEL, call=0)))
    early.start()
    with pytest.raises(JobCancelled):
        early.enter()
    assert early.call == 0


def test_a_failure_before_the_call_is_agreed_on_after_what_was_exchanged_early() -> None:
    peers = Peers(row(call=0), row(error="out_of_memory", call=0))
    early = gate(peers)
    early.start()
    early.agree_on(OutOfMemory("x"))
    assert [words[4] > 0 for words in peers.mine] == [False, True]


def test_a_failure_that_the_others_do_not_share_ends_the_group_after_an_early_exchange_too() -> None:
    early = gate(Peers(row(call=0), row(call=1)))
    early.start()
    with pytest.raises(OutOfStep):
        early.agree_on(OutOfMemory("x"))


def test_every_error_of_ours_has_a_word() -> None:
    for error in (BadRequest, InternalError, OutOfMemory):
        assert decide(rows(row(error=error.code))).error == error.code


def test_what_the_ranks_have_sent_is_added_up_after_the_last_call() -> None:
    peers = Peers(row(call=0), Row(sequence=7, call=1, sent_bytes=5_000_000_000))
    passed = gate(peers)
    passed.enter()
    assert passed.add_up(7) == 5_000_000_007
    assert [words[8] for words in peers.mine] == [0, 7]


@pytest.mark.parametrize("theirs", [row(call=1), row(call=0, error="internal"), row(call=0, sequence=8)])
def test_a_rank_that_adds_up_while_another_one_has_failed_ends_the_group(theirs: Row) -> None:
    with pytest.raises(OutOfStep):
        gate(Peers(theirs)).add_up(7)


def told(wants_key: bool = False, is_broken: bool = False, *, evictions: int = 0, state_bytes: int = 0) -> Row:
    news = ResidualNews(wants_key=wants_key, is_broken=is_broken, evictions=evictions, state_bytes=state_bytes)
    return Row(sequence=7, call=3, residuals=news)


def test_news_of_residual_state_have_words_of_their_own() -> None:
    assert told().words()[5:] == [0] * 75
    assert told(True, evictions=4, state_bytes=5_000_000_000).words()[5:9] == [1, 4, 5_000_000_000, 0]
    assert told(True, True).words()[5] == 2
    with pytest.raises(InternalError, match="key frame"):
        ResidualNews(is_broken=True)


@pytest.mark.parametrize("place", range(3))
def test_one_rank_that_wants_a_key_frame_is_enough_and_so_is_one_that_says_why(place: int) -> None:
    assert decide(rows(told(), told(), told())).residuals == ResidualNews()
    for is_broken in (False, True):
        ranks = [told(), told(), told()]
        ranks[place] = told(True, is_broken)
        decided = decide(rows(*ranks)).residuals
        assert (decided.wants_key, decided.is_broken) == (True, is_broken)
    assert decide(rows(told(True), told(True, True), told())).residuals.is_broken


def test_the_rank_that_needs_most_counts() -> None:
    decided = decide(rows(told(state_bytes=5), told(state_bytes=7), told(state_bytes=0))).residuals
    assert decided.state_bytes == 7


def test_ranks_that_dropped_other_states_end_the_group() -> None:
    assert decide(rows(told(evictions=2), told(evictions=2))).residuals.evictions == 2
    with pytest.raises(OutOfStep, match="dropped residual state"):
        decide(rows(told(evictions=2), told(evictions=1)))


def of_errors(**errors_ppm: int) -> Row:
    """Errors by group: ``g3=7``."""
    every = tuple(errors_ppm.get(f"g{group}", 0) for group in range(LAYER_GROUPS))
    return Row(sequence=7, call=3, residuals=ResidualNews(errors_ppm=every))


def test_errors_travel_by_layer_group_and_in_each_the_greatest_counts() -> None:
    assert of_errors(g0=4, g63=5).words()[16:] == [4, *[0] * 62, 5]
    decided = decide(rows(of_errors(g0=4, g2=9), of_errors(g0=5, g63=2), told())).residuals
    assert decided.errors_ppm == (5, 0, 9, *[0] * 60, 2)
    assert decide(rows(of_errors(), told())).residuals == ResidualNews(), "where nothing was measured nothing is told"
    assert decide(rows(of_errors(g0=4), of_errors())) == decide(rows(of_errors(), of_errors(g0=4))), "whoever measured"


def test_errors_of_some_groups_only_are_no_news() -> None:
    with pytest.raises(InternalError, match="64 groups or none, not of 3"):
        ResidualNews(errors_ppm=(1, 2, 3))


def test_a_gate_tells_the_news_of_its_start_and_gives_what_all_concluded() -> None:
    """Each is asked for once: an early exchange takes it along, and the call that follows does not ask again."""
    news = iter([ResidualNews(wants_key=True, state_bytes=3), ResidualNews(state_bytes=9)])
    peers = Peers(told(), Row(sequence=7, call=4))
    waits = lambda: None  # noqa: E731
    early = CallGate(
        exchange=peers.exchange,
        asks=lambda: Action.CONTINUE,
        wait_for_device=waits,
        sequence=7,
        call=3,
        tells=lambda: next(news),
    )
    early.start()
    early.enter()
    assert early.residuals == ResidualNews(wants_key=True, state_bytes=3)
    early.enter()
    assert early.residuals == ResidualNews(state_bytes=9)
    assert next(news, None) is None
