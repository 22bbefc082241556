"""Headers as trees that can say what no encoder of ours would: keys twice or out of order, raw bytes in the middle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack
from tutti.backend.wire.codec import PREAMBLE

from .examples import EXAMPLES


class Pairs(list[tuple[Any, Any]]):
    """A map whose keys may repeat and are in the order given."""


class Raw(bytes):
    """Bytes that stand in the packed header as they are."""


Node = Any
"""Pairs, list, scalar, or Raw."""


def pack(node: Node) -> bytes:
    """A tree as msgpack."""
    if isinstance(node, Raw):
        return bytes(node)
    packer = msgpack.Packer()
    if isinstance(node, Pairs):
        return packer.pack_map_header(len(node)) + b"".join(pack(key) + pack(value) for key, value in node)
    if isinstance(node, list):
        return packer.pack_array_header(len(node)) + b"".join(pack(item) for item in node)
    return bytes(packer.pack(node))


def parse(header: bytes) -> Node:
    """The tree of a legal header."""
    return msgpack.unpackb(header, object_pairs_hook=Pairs)


def header_of(name: str) -> Node:
    """The tree of an example's header."""
    return parse(EXAMPLES[name].frames()[1])


def get(tree: Node, *path: str | int) -> Node:
    """The node at a path of map keys and array places."""
    for step in path:
        tree = next(value for key, value in tree if key == step) if isinstance(tree, Pairs) else tree[step]
    return tree


def put(tree: Node, path: Sequence[str | int], value: Node) -> None:
    """Replace the node at ``path``; a key that is not there yet is added."""
    parent, last = get(tree, *path[:-1]), path[-1]
    if not isinstance(parent, Pairs):
        parent[last] = value
        return
    for index, (key, _) in enumerate(parent):
        if key == last:
            parent[index] = (key, value)
            return
    parent.append((last, value))


def drop(tree: Node, *path: str | int) -> None:
    """Remove the node at ``path``."""
    parent, last = get(tree, *path[:-1]), path[-1]
    if isinstance(parent, Pairs):
        parent[:] = Pairs((key, value) for key, value in parent if key != last)
    else:
        del parent[last]


def repeat(tree: Node, *path: str | int) -> None:
    """Say the map entry at ``path`` a second time."""
    parent = get(tree, *path[:-1])
    parent.append((path[-1], get(parent, path[-1])))


def edited(name: str, edit: Callable[[Node], None]) -> list[bytes]:
    """An example's frames after ``edit`` had its header's tree in hand."""
    frames = EXAMPLES[name].frames()
    tree = parse(frames[1])
    edit(tree)
    return [frames[0], pack(tree), *frames[2:]]


def headed(header: bytes, *rest: bytes) -> list[bytes]:
    """A message with these bytes for a header."""
    return [PREAMBLE, header, *rest]
