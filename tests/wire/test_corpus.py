"""Hostile messages made by hand: each is refused, for its own reason, at once, in words that may stand in a log."""

from __future__ import annotations

import time

import pytest
from tutti.backend.errors import RemoteProtocolError
from tutti.backend.wire.codec import Received, decode
from tutti.backend.wire.limits import TEXT_LENGTH

from tests.wire.corpus import CORPUS
from tests.wire.corpus.row import Row
from tests.wire.examples import EXAMPLES
from tests.wire.fuzz import Finding, try_corpus

LONGEST_S = 0.1


def test_the_corpus_is_large_and_every_row_has_a_name_of_its_own() -> None:
    names = [row.name for row in CORPUS]
    assert len(names) >= 250
    assert sorted(set(names)) == sorted(names)


def test_no_two_rows_are_the_same_message() -> None:
    assert len({tuple(row.frames) for row in CORPUS}) == len(CORPUS)


def test_the_check_notices_a_row_that_is_accepted_or_refused_for_another_reason() -> None:
    """The control."""
    good = decode(EXAMPLES["Ping"].frames())
    with pytest.raises(Finding, match="accepted"):
        try_corpus(lambda _: good)

    def refuse(_: list[bytes]) -> Received:
        raise RemoteProtocolError("no")

    with pytest.raises(Finding, match="refused for another reason"):
        try_corpus(refuse)


@pytest.mark.parametrize("row", CORPUS, ids=lambda row: row.name)
def test_it_is_refused_for_its_own_reason(row: Row) -> None:
    began_s = time.thread_time()
    with pytest.raises(RemoteProtocolError) as caught:
        decode(row.frames)
    spent_s = time.thread_time() - began_s

    text = str(caught.value)
    assert type(caught.value) is row.error
    assert row.says in text
    assert text.isprintable()
    assert len(text) <= TEXT_LENGTH  # it must fit into a Failed
    assert spent_s < LONGEST_S
