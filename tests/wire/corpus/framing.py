"""Preambles that are not ours, and frames that are missing, too many or of the wrong length."""

from __future__ import annotations

from tutti.backend.errors import VersionMismatch

from ..examples import EXAMPLES
from .row import Row

PING = EXAMPLES["Ping"].frames()
HEADER = PING[1]
RESULT = EXAMPLES["Result"].frames()
DESCRIBED = EXAMPLES["Described"].frames()
SAMPLE = EXAMPLES["Sample"].frames()

NOT_OURS = "not its preamble"
VERSIONS = "this side speaks protocol 1.0, the other {}."


def _preamble(name: str, preamble: bytes, says: str = NOT_OURS) -> Row:
    return Row(f"preamble: {name}", [preamble, HEADER], says)


def _version(major: int, minor: int) -> Row:
    preamble = b"TUTTI" + bytes((major, minor, 0))
    return Row(f"version {major}.{minor}", [preamble, HEADER], VERSIONS.format(f"{major}.{minor}"), VersionMismatch)


FRAMING = (
    Row("no frames", [], "2 to 67 frames, got 0"),
    Row("one empty frame", [b""], "2 to 67 frames, got 1"),
    Row("a preamble alone", PING[:1], "2 to 67 frames, got 1"),
    Row("a header alone", PING[1:], "2 to 67 frames, got 1"),
    Row("two empty frames", [b"", b""], NOT_OURS),
    Row("68 frames", PING + [b""] * 66, "2 to 67 frames, got 68"),
    Row("100,000 empty frames", [b""] * 100_000, "2 to 67 frames, got 100000"),
    Row("a routing identity in front", [b"\x00kc8\x12", *PING], NOT_OURS),
    Row("an empty delimiter in front, as REQ sends it", [b"", *PING], NOT_OURS),
    Row("preamble and header in one frame", [PING[0] + HEADER, b""], NOT_OURS),
    Row("preamble and header swapped", [HEADER, PING[0]], NOT_OURS),
    Row("the preamble twice", [PING[0], PING[0]], "not readable"),
    _preamble("cut short", b"TUTTI\x01\x00"),
    _preamble("one byte longer", b"TUTTI\x01\x00\x00\x00"),
    _preamble("lower case", b"tutti\x01\x00\x00"),
    _preamble("one letter off", b"TUTTY\x01\x00\x00"),
    _preamble("eight zeros", bytes(8)),
    _preamble("eight 255s", b"\xff" * 8),
    _preamble("a request for a web page", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    _preamble("a ZMTP greeting", b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"),
    _preamble("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01"),
    _preamble("a pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00"),
    _preamble("UTF-16", "TUTT".encode("utf-16-le")),
    _preamble("4 MiB of it", b"TUTTI\x01\x00\x00" * (1 << 19)),
    _preamble("spare byte 1", b"TUTTI\x01\x00\x01", "the spare byte of the preamble is 1"),
    _preamble("spare byte 255", b"TUTTI\x01\x00\xff", "the spare byte of the preamble is 255"),
    _version(0, 0),
    _version(0, 9),
    _version(2, 0),
    _version(255, 255),
    Row(
        "another major is said before anything else is looked at",
        [b"TUTTI\x02\x07\x09", b"\xc1" * 70_000],
        VERSIONS.format("2.7"),
        VersionMismatch,
    ),
    Row("a frame after a message without tensors", [*PING, b""], "1 frames follow the header, it announces 0"),
    Row("a tensor frame missing", RESULT[:-1], "1 frames follow the header, it announces 2"),
    Row("all tensor frames missing", RESULT[:2], "0 frames follow the header, it announces 2"),
    Row("a tensor frame too many", [*RESULT, RESULT[2]], "3 frames follow the header, it announces 2"),
    Row(
        "a tensor frame one byte short",
        [*RESULT[:3], RESULT[3][:-1]],
        "x0: the frame has 239 bytes, its shape says 240",
    ),
    Row(
        "a tensor frame one byte long",
        [*RESULT[:3], RESULT[3] + b"\0"],
        "x0: the frame has 241 bytes, its shape says 240",
    ),
    Row("an empty tensor frame", [*RESULT[:2], b"", RESULT[3]], "latent: the frame has 0 bytes, its shape says 240"),
    Row(
        "two tensor frames of different size swapped",
        [*SAMPLE[:2], SAMPLE[3], SAMPLE[2], *SAMPLE[4:]],
        "its shape says",
    ),
    Row("the manifest missing", DESCRIBED[:2], "0 frames follow the header, it announces 1"),
    Row("the manifest twice", [*DESCRIBED, DESCRIBED[2]], "2 frames follow the header, it announces 1"),
    Row("the header of one message, the tensors of another", [*RESULT[:2], *SAMPLE[2:]], "it announces 2"),
)
