"""What status says about the group: the ranks' own words, put together, with the numbers of those that differ."""

from __future__ import annotations

import pytest
from tutti.backend.broker.report import status
from tutti.backend.wire.codec import decode, encode
from tutti.backend.wire.limits import NAME_LENGTH
from tutti.backend.wire.messages import Done, Status

from tests.unit.broker.rig import MODEL, A, Rig, ready_rig


def after_a_job(*attentions: str) -> Rig:
    """A group whose ranks left a job saying this about their attention."""
    rig = ready_rig(world_size=len(attentions))
    rig.submit(A, 1)
    rig.prepared()
    rig.result(1)
    for rank, attention in enumerate(attentions):
        rig.rank(rank, Done(sequence=1, memory_bytes=1, resident=(MODEL,), attention=attention))
    return rig


def after_a_compressed_job(*compressions: str) -> Rig:
    """A group whose ranks left a job saying this about its exchange."""
    rig = after_a_job(*[""] * len(compressions))
    rig.submit(A, 2)
    rig.prepared()
    rig.result(2)
    for rank, compression in enumerate(compressions):
        rig.rank(rank, Done(sequence=2, memory_bytes=1, resident=(MODEL,), compression=compression))
    return rig


def asked(rig: Rig) -> Status:
    """As a client reads it."""
    read = decode(encode(status(rig.broker.core, 1, 1.0), {})).message
    assert isinstance(read, Status)
    return read


OFF = "flash is off for 1 shape: RuntimeError, see the rank's log"


@pytest.mark.parametrize(
    ("attentions", "expected"),
    [
        (("", ""), ""),
        (("cudnn", "cudnn"), "cudnn"),
        (("cudnn", ""), "cudnn"),  # the other one has not left its first job yet
        ((f"cudnn; {OFF}", f"cudnn; {OFF}"), f"cudnn; {OFF}"),
        (("cudnn", f"cudnn; {OFF}"), f"cudnn; {OFF} (rank 1)"),
        (("cudnn", f"cudnn; {OFF}", f"cudnn; {OFF}"), f"cudnn; {OFF} (ranks 1, 2)"),
        # Two halves of a group choose for themselves.
        (("cudnn", "cudnn", "flash", "flash"), "cudnn (ranks 0, 1); flash (ranks 2, 3)"),
    ],
)
def test_what_only_some_ranks_say_about_attention_comes_with_their_numbers(
    attentions: tuple[str, ...], expected: str
) -> None:
    assert asked(after_a_job(*attentions)).attention == expected


def test_what_does_not_fit_ends_with_an_ellipsis() -> None:
    long = asked(after_a_job("a" * 400, "b" * 400)).attention
    assert len(long) <= NAME_LENGTH
    assert long.startswith("a" * 400 + " (rank 0); b")
    assert long.endswith("b …")
    assert not asked(after_a_job("a" * 100, "b" * 100)).attention.endswith("…")


def test_a_group_that_is_started_again_has_had_no_attention_yet() -> None:
    rig = after_a_job("cudnn", "cudnn")
    rig.group_lost()
    assert asked(rig).attention == ""
    assert asked(after_a_compressed_job(FIGURES, FIGURES)).compression == FIGURES
    rig = after_a_compressed_job(FIGURES, FIGURES)
    rig.group_lost()
    assert asked(rig).compression == ""


FIGURES = "balanced: 7.6x fewer bytes, error 1.2 %, 0.4 GB of state"
TROUBLED = f"{FIGURES}; a key frame was repeated"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("", ""), ""),
        ((FIGURES, FIGURES.replace("1.2", "1.3")), FIGURES),  # rank 0 speaks for all: their figures hardly differ
        ((FIGURES, TROUBLED), f"{TROUBLED} (rank 1)"),
        ((TROUBLED, TROUBLED), TROUBLED),
        (("one rank: nothing to compress",), "one rank: nothing to compress"),
    ],
)
def test_compression_is_told_once_and_trouble_before_figures(said: tuple[str, ...], expected: str) -> None:
    assert asked(after_a_compressed_job(*said)).compression == expected
