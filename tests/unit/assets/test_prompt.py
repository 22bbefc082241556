"""Prompts as conditioning: which words are known, what they belong to, and what is said about the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tutti.backend.assets.prompt import CONTEXT_WIDTH, PARTS, POOLED_WIDTH, TOKENS, parse
from tutti.backend.assets.vocabulary import IGNORED, SYNONYMS, WORDS

BOTH = "a large striped red circle at the top left and a small blue star on a grey background"


def test_every_word_belongs_to_its_object_or_the_background() -> None:
    prompt = parse(BOTH)
    assert prompt.words == (
        ("large", 0), ("striped", 0), ("red", 0), ("circle", 0), ("top", 0), ("left", 0), ("small", 1), ("blue", 1), ("star", 1), ("grey", 7),
    )  # fmt: skip
    assert (prompt.unknown, prompt.left_out) == ((), ())


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("A BIG stripy RED disc, top left; a tiny blue star on a gray background!", BOTH),
        ("red circle", "a red circle"),
        ("two blue stars", "a blue star"),
        ("a star over the black background", "a star on a black background"),
        ("on a white background a red heart", "a red heart on a white background"),
    ],
)
def test_the_same_thing_in_other_words_is_the_same(text: str, same: str) -> None:
    assert parse(text).words == parse(same).words


def test_words_that_were_never_taught_are_listed_and_change_nothing() -> None:
    prompt = parse("a photorealistic red circle, trending")
    assert prompt.unknown == ("photorealistic", "trending")
    assert prompt.words == parse("a red circle").words


def test_what_has_no_room_is_listed() -> None:
    objects = ["a small plain red circle at the top left"] * 5
    prompt = parse(" and ".join(objects))
    assert {part for _, part in prompt.words} == set(range(PARTS))
    assert len(prompt.left_out) == 2 * 6
    many = parse(" ".join(["red"] * (TOKENS + 3)))
    assert (len(many.words), len(many.left_out)) == (TOKENS, 3)


def test_an_empty_prompt_is_all_zeros() -> None:
    assert not any(map(any, parse("").context()))
    assert not any(parse("").pooled())


def test_swapped_colours_are_another_prompt_although_the_words_are_the_same() -> None:
    one, other = parse("a red circle and a blue star"), parse("a blue circle and a red star")
    assert one.pooled() == other.pooled()
    assert one.context() != other.context()
    assert sorted(one.context()) != sorted(other.context()), "not only in another order"


@given(st.text(max_size=400))
def test_any_text_is_a_prompt(text: str) -> None:
    prompt = parse(text)
    context, pooled = prompt.context(), prompt.pooled()
    assert (len(context), {len(row) for row in context}, len(pooled)) == (TOKENS, {CONTEXT_WIDTH}, POOLED_WIDTH)
    assert {value for row in (*context, pooled) for value in row} <= {0.0, 1.0}
    assert sum(map(any, context)) == len(prompt.words)


def test_every_token_says_what_its_own_part_says_and_nothing_of_the_others() -> None:
    words = {word: row for (word, _), row in zip(parse(BOTH).words, parse(BOTH).context(), strict=False)}
    in_part = slice(len(WORDS), 2 * len(WORDS))
    red, top, blue, grey = (words[word][in_part] for word in ("red", "top", "blue", "grey"))
    assert red == top != blue
    assert [word for word, said in zip(WORDS, blue, strict=True) if said] == ["small", "blue", "star"]
    assert [word for word, said in zip(WORDS, grey, strict=True) if said] == ["grey"]


def test_the_vocabulary_fits_and_says_nothing_twice() -> None:
    assert len(set(WORDS)) == len(WORDS) == 28
    assert set(SYNONYMS.values()) <= set(WORDS)
    assert not set(WORDS) & (IGNORED | set(SYNONYMS))
