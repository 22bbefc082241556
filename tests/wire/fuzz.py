"""The fuzz loop: whatever the bytes, they are a message or raise RemoteProtocolError, within 100 ms.

    python [-O] -m tests.wire.fuzz --count 1000000 --seed 7

runs it outside pytest, after the corpus, and exits 1 at the first finding. No assert statements: it must find the same
under ``python -O``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgpack
from tutti.backend.errors import RemoteProtocolError
from tutti.backend.wire import codec
from tutti.backend.wire.codec import Received
from tutti.backend.wire.limits import TEXT_LENGTH

from .corpus import CORPUS
from .mutations import Frames, Mutator

LONGEST_S = 0.1
COMPILED = msgpack.Unpacker.__module__ != "msgpack.fallback"

Decode = Callable[[Frames], Received]


class Finding(Exception):
    """A message that was handled wrongly. The text says how, and how to see it again."""


@dataclass
class Tally:
    """How many messages ended how."""

    accepted: int = 0
    refused: int = 0


def fuzz(count: int, seed: int, decode: Decode = codec.decode) -> Tally:
    """Decode ``count`` broken messages.

    Raises:
        Finding: one was handled wrongly.
    """
    mutator, tally = Mutator(seed), Tally()
    for index in range(count):
        frames = mutator.next()
        try:
            _try(frames, decode, tally)
        except Finding as error:
            shown = [frame[:400].hex() for frame in frames[:8]]
            raise Finding(f"{error} (seed {seed}, message {index}: {shown})") from error.__cause__
    return tally


def try_corpus(decode: Decode = codec.decode) -> None:
    """Decode the corpus: every row is refused, and for its own reason. (The pure-Python msgpack sees some of them earlier.)

    Raises:
        Finding: one was not.
    """
    for row in CORPUS:
        try:
            decode(row.frames)
        except RemoteProtocolError as error:
            if type(error) is not row.error or (COMPILED and row.says not in str(error)):
                raise Finding(f"{row.name}: refused for another reason: {error}") from error
        else:
            raise Finding(f"{row.name}: accepted")


def _try(frames: Frames, decode: Decode, tally: Tally) -> None:
    began_s = time.thread_time()  # what this thread worked, not what a busy machine made it wait
    try:
        received = decode(frames)
    except RemoteProtocolError as error:
        _check_text(str(error))
        tally.refused += 1
    except Exception as error:
        raise Finding(f"raised {type(error).__name__}") from error
    else:
        _check_accepted(received)
        tally.accepted += 1
    if time.thread_time() - began_s > LONGEST_S:
        raise Finding(f"took {time.thread_time() - began_s:.3f} s")


def _check_text(text: str) -> None:
    if not text.isprintable() or not 0 < len(text) <= TEXT_LENGTH:
        raise Finding(f"an error that may not stand in a log: {text[:200]!r}")


def _check_accepted(received: Received) -> None:
    """What was accepted is legal for the sender too, and says the same when it is sent again."""
    try:
        again = codec.decode(codec.encode(received.message, received.tensors, received.manifest))
    except Exception as error:
        raise Finding(f"accepted what cannot be sent: {type(error).__name__}") from error
    if again != received:
        raise Finding("accepted what says something else when it is sent again")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="how many messages")
    parser.add_argument("--seed", type=int, default=time.time_ns(), help="what repeats a run (default: a new one)")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    try:
        try_corpus()
        tally = fuzz(arguments.count, arguments.seed)
    except Finding as error:
        print(error, file=sys.stderr)
        return 1
    spent_s = time.monotonic() - began_s
    print(f"seed {arguments.seed}: {tally.accepted} accepted, {tally.refused} refused in {spent_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
