"""Two versions of Tutti meet: another major is refused by name, a later minor is understood as far as it goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tutti.backend.errors import RemoteProtocolError, VersionMismatch
from tutti.backend.wire.codec import MAGIC, MAJOR, MINOR, decode

from tests.wire.examples import EXAMPLES
from tests.wire.raw import Node, Pairs, Raw, edited, get, put, repeat

LATER = MAGIC + bytes((MAJOR, MINOR + 1, 0))
NEWS = Pairs([("deep", [Pairs([("a", [1, 2.5, None, b"x" * 9_000])]), Raw(b"\xc7\x03\x05abc")]), (7, [])])
"""A value of a kind that this version has nowhere."""


def from_later(name: str, edit: Callable[[Node], None]) -> list[bytes]:
    """An example as a later minor version might send it."""
    return [LATER, *edited(name, edit)[1:]]


@pytest.mark.parametrize("major", [0, MAJOR + 1, 255])
@pytest.mark.parametrize("minor", [0, 3])
def test_another_major_version_is_refused_and_both_are_named(major: int, minor: int) -> None:
    frames = [MAGIC + bytes((major, minor, 0)), *EXAMPLES["Hello"].frames()[1:]]
    with pytest.raises(VersionMismatch) as caught:
        decode(frames)
    text = str(caught.value)
    assert text.startswith("Install the same version of Tutti on both sides")
    assert f"{MAJOR}.{MINOR}" in text
    assert f"{major}.{minor}" in text
    assert caught.value.code == "version_mismatch"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_later_minor_version_that_says_nothing_new_is_read(name: str) -> None:
    received = decode([LATER, *EXAMPLES[name].frames()[1:]])
    assert received.message == EXAMPLES[name].message


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("Ping", ["news"]),
        ("Ping", ["body", "news"]),
        ("Sample", ["body", "on", "news"]),
        ("Sample", ["body", "branches", 1, "news"]),
        ("Prepare", ["body", "evaluate", "news"]),
        ("Prepare", ["body", "evaluate", "calls", 0, "news"]),
        ("Prepare", ["body", "specs", 2, "news"]),
        ("Status", ["body", "jobs", 0, "news"]),
    ],
)
def test_fields_that_a_later_minor_version_added_are_passed_over_at_every_depth(
    name: str, path: list[str | int]
) -> None:
    def edit(tree: Node) -> None:
        put(tree, path, NEWS)

    assert decode(from_later(name, edit)).message == EXAMPLES[name].message
    with pytest.raises(RemoteProtocolError, match=r"unknown field|the header is not a map"):
        decode(edited(name, edit))  # from a peer of our own version the same is an error


def test_a_field_of_ours_that_comes_after_a_new_one_is_still_read() -> None:
    def edit(tree: Node) -> None:
        get(tree, "body").insert(0, ("news", NEWS))

    assert decode(from_later("Sample", edit)).message == EXAMPLES["Sample"].message


@pytest.mark.parametrize(
    ("what", "name", "edit"),
    [
        ("a field twice", "Ping", lambda tree: repeat(tree, "body", "nonce")),
        ("a wrong type", "Ping", lambda tree: put(tree, ["body", "nonce"], "1")),
        ("a new message", "Ping", lambda tree: put(tree, ["type"], "Applause")),
        ("a new sampler", "Sample", lambda tree: put(tree, ["body", "sampler"], "lcm")),
        ("a new tensor", "Preview", lambda tree: put(tree, ["tensors"], [["depth", "BF16", [1, 4, 3, 5]]])),
        ("a new dtype", "Preview", lambda tree: put(tree, ["tensors"], [["x0", "F4", [1, 4, 3, 5]]])),
        ("a name that is no text", "Ping", lambda tree: get(tree, "body").append((1, 1))),
        ("a value cut short", "Ping", lambda tree: put(tree, ["body", "news"], Raw(b"\xa5abc"))),
        ("a value nested beyond reason", "Ping", lambda tree: put(tree, ["body", "news"], Raw(b"\x91" * 5_000))),
        ("a header of 65 fields", "Ping", lambda tree: tree.extend((f"n{i}", 1) for i in range(65))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_changes_the_meaning_is_refused_from_a_later_minor_version_too(
    what: str, name: str, edit: Callable[[Node], None]
) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(from_later(name, edit))
