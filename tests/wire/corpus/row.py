"""One row of the corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tutti.backend.errors import RemoteProtocolError

from ..raw import Node, Raw, drop, edited, put, repeat


@dataclass(frozen=True)
class Row:
    """Frames, the error that they cause, and a piece of its text, so that a row cannot be refused for another reason."""

    name: str
    frames: list[bytes]
    says: str
    error: type[RemoteProtocolError] = RemoteProtocolError


def setting(message: str, path: str, value: Node, says: str) -> Row:
    """A row that sets one value of an example's header. ``path``: ``body.on.dtype``, ``tensors.0.2``."""
    steps = steps_of(path)
    shown = value.hex() if isinstance(value, Raw) else repr(value)
    name = f"{message}: {path} = {shown if len(shown) < 60 else shown[:57] + '...'}"
    return Row(name, edited(message, lambda tree: put(tree, steps, value)), says)


def dropping(message: str, path: str, says: str) -> Row:
    """A row that leaves one value out."""
    return Row(f"{message}: no {path}", edited(message, lambda tree: drop(tree, *steps_of(path))), says)


def repeating(message: str, path: str, says: str) -> Row:
    """A row that says one map entry twice."""
    return Row(f"{message}: {path} twice", edited(message, lambda tree: repeat(tree, *steps_of(path))), says)


def editing(message: str, what: str, edit: Callable[[Node], None], says: str) -> Row:
    """A row with an edit of its own."""
    return Row(f"{message}: {what}", edited(message, edit), says)


def steps_of(path: str) -> list[str | int]:
    """``tensors.0.2`` as keys and places."""
    return [int(step) if step.isdigit() else step for step in path.split(".")]
