"""Legal and hostile messages, broken at random on three levels: bytes, frames, and the structure of the header."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from tutti.backend.wire.codec import PREAMBLE

from .corpus import CORPUS
from .examples import DIGEST, EXAMPLES, JOB
from .raw import Node, Pairs, Raw, pack, parse

Frames = list[bytes]

LARGEST_SEED_BYTES = 20_000
"""Larger rows of the corpus are tested as they are; broken again and again they would only be slow."""

MARKERS = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, *range(0xC0, 0xE0), 0xFF)
"""Bytes that begin something in msgpack."""

STRANGE: tuple[Node, ...] = (
    None, True, False, 0, 1, -1, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
    0.0, -0.0, 1.0, 0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
    "", "a", "positive", "F32", "BF16", JOB, DIGEST, "\0", "é", "漢" * 40, "x" * 600, b"", b"\xff" * 9,
    [], [0], [[]], [None] * 20, Pairs(), Pairs([("a", 1)]), Pairs([("a", 1), ("a", 1)]), Pairs([(1, 1)]),
    Raw(b"\xc1"), Raw(b"\xdd\xff\xff\xff\xff"), Raw(b"\xdf\xff\xff\xff\xff"), Raw(b"\xdb\x7f\xff\xff\xff"),
    Raw(b"\xd6\xff\x00\x00\x00\x01"), Raw(b"\xa3\xed\xa0\x80"), Raw(b"\xdc\x04\x00" * 300), Raw(b""),
)  # fmt: skip
"""Values that do not belong where they are put."""


def seeds() -> list[Frames]:
    """Where mutations start: every example twice for every hostile row, so that most mutants come close to being legal."""
    legal = [example.frames() for example in EXAMPLES.values()]
    hostile = [row.frames for row in CORPUS if sum(map(len, row.frames)) + len(row.frames) < LARGEST_SEED_BYTES]
    return legal * (2 * len(hostile) // len(legal)) + hostile


class Mutator:
    """An endless stream of broken messages that a seed repeats."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seeds = seeds()

    def next(self) -> Frames:
        """One message after one to three mutations."""
        frames = list(self._pick(self._seeds))
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            frames = self._pick((self._bytes, self._frames, self._structure, self._structure))(frames)
        return frames

    def _pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self._random.random() * len(choices))]

    def _place(self, length: int) -> int:
        return int(self._random.random() * length)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _bytes(self, frames: Frames) -> Frames:
        if not frames:
            return [PREAMBLE]
        index = 1 if len(frames) > 1 and self._random.random() < 0.8 else self._place(len(frames))
        data = bytearray(frames[index])
        for _ in range(self._pick((1, 1, 2, 8))):
            self._break(data)
        return [*frames[:index], bytes(data), *frames[index + 1 :]]

    def _break(self, data: bytearray) -> None:
        place, kind = self._place(len(data) + 1), self._place(6)
        if kind == 0:
            data[place:place] = bytes((self._pick(MARKERS),))
        elif kind == 1:
            del data[place : place + self._pick((1, 2, 4, 30))]
        elif kind == 2:
            data[place:place] = data[place : place + self._pick((1, 4, 40))]
        elif kind == 3:
            del data[place:]
        elif place < len(data):
            data[place] = self._pick(MARKERS) if kind == 4 else data[place] ^ (1 << self._place(8))

    # --- frames -------------------------------------------------------------------------------------------------------

    def _frames(self, frames: Frames) -> Frames:
        frames = list(frames)
        place, kind = self._place(len(frames)), self._place(7)
        if kind == 0 or not frames:
            frames.insert(place, self._pick((b"", b"\0", PREAMBLE, b"\xff" * 240, bytes(240))))
        elif kind == 1:
            del frames[place]
        elif kind == 2:
            other = self._place(len(frames))
            frames[place], frames[other] = frames[other], frames[place]
        elif kind == 3:
            frames[place] = frames[place][: self._place(len(frames[place]) + 1)]
        elif kind == 4:
            frames[place] += self._pick((b"\0", b"\xc0", frames[place][:16]))
        elif kind == 5:
            stranger = self._pick(self._seeds)
            frames[place] = self._pick(stranger) if stranger else b""
        else:
            version = bytes((self._pick((0, 1, 1, 1, 2)), self._pick((0, 1, 255)), self._pick((0, 0, 1))))
            frames[0] = b"TUTTI" + version
        return frames

    # --- structure ----------------------------------------------------------------------------------------------------

    def _structure(self, frames: Frames) -> Frames:
        if len(frames) < 2:
            return self._frames(frames)
        try:
            tree = parse(frames[1])
        except Exception:  # not msgpack any more: there is no structure to break
            return self._bytes(frames)
        if not isinstance(tree, list) or not tree:
            return self._bytes(frames)
        self._descend(tree)
        return [frames[0], pack(tree), *frames[2:]]

    def _descend(self, node: Node) -> None:
        """Walk down to a random container and change it."""
        while True:
            place = self._place(len(node))
            child = node[place][1] if isinstance(node, Pairs) else node[place]
            if not isinstance(child, list) or not child or self._random.random() < 0.2:
                break
            node = child
        change: Callable[[Any, int], None] = self._change_map if isinstance(node, Pairs) else self._change_array
        change(node, place)

    def _change_map(self, pairs: Pairs, place: int) -> None:
        (key, value), kind = pairs[place], self._place(6)
        if kind == 0:
            del pairs[place]
        elif kind == 1:
            pairs.insert(place, (key, self._pick((value, self._pick(STRANGE)))))
        elif kind == 2:
            pairs[place] = (self._pick((*STRANGE, "type", "body", "kind", "options", "request")), value)
        elif kind == 3:
            pairs.reverse()
        else:
            pairs[place] = (key, self._strange(value))

    def _change_array(self, items: list[Node], place: int) -> None:
        kind = self._place(5)
        if kind == 0:
            del items[place]
        elif kind == 1:
            items.insert(place, items[place])
        elif kind == 2:
            items.extend([self._pick(STRANGE)] * self._pick((1, 8, 70)))
        else:
            items[place] = self._strange(items[place])

    def _strange(self, value: Node) -> Node:
        """Another value: near the old one, or from the list."""
        if type(value) is int and self._random.random() < 0.5:
            return self._pick((value + 1, value - 1, -value, value * 2, value + 2**32)) % 2**64
        if type(value) is str and self._random.random() < 0.3:
            return self._pick((value[:-1], value + value[:1], value.upper(), value[::-1]))
        return self._pick(STRANGE)
