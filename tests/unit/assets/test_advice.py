"""What somebody is told about their prompt: nothing that they wrote is passed over in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tutti.backend.assets.advice import EXAMPLE, read_prompt, size_warning, understood, vocabulary, warnings
from tutti.backend.assets.vocabulary import WORDS
from tutti.backend.errors import BadRequest

REPOSITORY = Path(__file__).resolve().parents[3]


def test_a_prompt_is_told_back_as_the_model_sees_it() -> None:
    assert understood(read_prompt(EXAMPLE)) == "large red circle top left | small blue star | grey background"
    assert warnings(read_prompt(EXAMPLE)) == []


@pytest.mark.parametrize("text", ["", "  \n", "...", "1 2 3"])
def test_a_prompt_without_words_is_empty(text: str) -> None:
    prompt = read_prompt(text)
    assert prompt.words == ()
    assert understood(prompt) == "no words: an empty prompt"
    assert warnings(prompt) == []


def test_every_word_without_effect_is_named_once() -> None:
    said = warnings(read_prompt("a red monkey and a blue monkey on a pink background"))
    assert said == ["Without effect, because the demo model does not know them: monkey, pink."]


def test_words_in_a_place_where_the_model_never_saw_them_are_named() -> None:
    (said,) = warnings(read_prompt("a red circle on an orange background"))
    assert (
        said == "Never seen as a background, of which there are white, black, grey, red, yellow, green, blue: orange."
    )
    (said,) = warnings(read_prompt("a grey circle on a grey background"))
    assert said == "Never seen as an object's colour: grey, which only backgrounds have."


def test_a_size_that_was_never_taught_is_named() -> None:
    assert size_warning(128, 256) == ""
    assert "128 to 256 pixels, and 1024 x 1024 will look worse" in size_warning(1024, 1024)


def test_words_without_room_are_named() -> None:
    (said,) = warnings(read_prompt("a red star, a blue star, a green star, a white ring"))
    assert said.endswith("room for 3 objects and 20 words: white, ring.")
    (said,) = warnings(read_prompt("small " * 20 + "heart"))
    assert said.endswith(": heart.")


@pytest.mark.parametrize("text", ["an elephant", "le chat", "the", "红色的圆"])
def test_a_prompt_of_which_nothing_is_known_is_refused_and_shown_what_would_do(text: str) -> None:
    with pytest.raises(BadRequest, match="Use words that the demo model knows, such as 'a large red circle") as refused:
        read_prompt(text)
    assert f"'{text}'" in refused.value.message


def test_what_is_quoted_of_a_prompt_is_short_and_printable() -> None:
    with pytest.raises(BadRequest) as refused:
        read_prompt("x\x00\ny" * 5000)
    assert len(refused.value.message) < 300
    assert refused.value.message.isprintable()


def test_the_vocabulary_has_every_word() -> None:
    assert [word for word in WORDS if word not in vocabulary()] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_prompt_node_shows_the_vocabulary_in_every_language(language: str) -> None:
    """The words themselves are English: the model knows no others."""
    nodes = json.loads((REPOSITORY / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    tooltip = nodes["TuttiDemoPrompt"]["inputs"]["text"]["tooltip"]
    page = (REPOSITORY / f"comfy_nodes/web/docs/TuttiDemoPrompt/{language}.md").read_text(encoding="utf-8")
    assert [word for word in WORDS if word not in tooltip] == []
    assert [word for word in WORDS if word not in page] == []
    if language == "en":
        assert tooltip.endswith(vocabulary())
