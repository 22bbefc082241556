"""Manifest frames that must be refused entry by entry."""

from __future__ import annotations

from typing import Any

import msgpack

from ..examples import EXAMPLES
from ..raw import Pairs, Raw, pack
from .row import Row

DESCRIBED = EXAMPLES["Described"].frames()
MANY = b"\xdc\x40\x00" + b"\x90" * 16_384
GOOD = ["img_in.weight", "BF16", [3072, 64]]


def _bytes(name: str, manifest: bytes, says: str) -> Row:
    return Row(f"manifest: {name}", [*DESCRIBED[:2], manifest], says)


def _rows(name: str, rows: Any, says: str) -> Row:
    return _bytes(name, pack(rows), says)


def _entry(name: str, entry: Any, says: str) -> Row:
    return _rows(f"an entry {name}", [GOOD, entry, GOOD], f"manifest, entry 1: {says}")


MANIFESTS = (
    _bytes("empty frame", b"", "manifest, entry 0: OutOfData"),
    _bytes("nil", b"\xc0", "manifest, entry 0: ValueError"),
    _bytes("text", msgpack.packb("img_in.weight"), "manifest, entry 0: ValueError"),
    _bytes("one byte over 4 MiB", bytes((4 << 20) + 1), "the manifest has 4194305 bytes, at most 4194304"),
    _bytes("claims 2^32 - 1 entries", b"\xdd\xff\xff\xff\xff", "4294967295 entries, at most 16384"),
    _bytes("cut short", DESCRIBED[2][:-1], "manifest, entry 2: OutOfData"),
    _bytes("claims one entry more", pack([GOOD]).replace(b"\x91", b"\x92", 1), "manifest, entry 1: OutOfData"),
    _bytes("a byte after it", DESCRIBED[2] + b"\xc0", "bytes follow the last entry"),
    _bytes("twice in one frame", DESCRIBED[2] * 2, "bytes follow the last entry"),
    _bytes("4 MiB of empty arrays", b"\xdc\x00\xff" + MANY * 255, "entry 0: an entry is a name"),
    _bytes("4 MiB of nested arrays", b"\x91" * (4 << 20), "manifest, entry 0: an entry is a name"),
    _rows("a map", Pairs([("img_in.weight", [3072, 64])]), "manifest, entry 0: ValueError"),
    _rows("16,385 entries", [["a", "F32", []]] * 16_385, "16385 entries, at most 16384"),
    _entry("that is nil", None, "ValueError"),
    _entry("that is text", "img_in.weight", "ValueError"),
    _entry("that is a map", Pairs([("name", "x"), ("kind", "F32"), ("numbers", [])]), "ValueError"),
    _entry("of two", ["x", "F32"], "an entry is a name, a kind and numbers"),
    _entry("of four", [*GOOD, 0], "an entry is a name, a kind and numbers"),
    _entry("without a name", [None, "F32", []], "expected a string, got NoneType"),
    _entry("with a number for a name", [1, "F32", []], "expected a string, got int"),
    _entry("with a name of 513 characters", ["n" * 513, "F32", []], "513 characters, at most 512"),
    _entry("with a name of 4 KiB", ["n" * 4_096, "F32", []], "ValueError"),
    _entry("with a name that is binary", [b"x", "F32", []], "ValueError"),
    _entry("with a surrogate in its name", [Raw(b"\xa3\xed\xa0\x80"), "F32", []], "UnicodeDecodeError"),
    _entry("with a kind of 33 characters", ["x", "F" * 33, []], "33 characters, at most 32"),
    _entry("with a number for a kind", ["x", 32, []], "expected a string, got int"),
    _entry("with one number for many", ["x", "F32", 3], "ValueError"),
    _entry("with nine numbers", ["x", "F32", [1] * 9], "9 elements, at most 8"),
    _entry("with a negative number", ["x", "F32", [4, -1]], "[1]: -1 is not within"),
    _entry("with a number of 64 bits", ["x", "F32", [2**63]], "[0]: 9223372036854775808 is not within"),
    _entry("with a float", ["x", "F32", [4.0]], "[0]: expected an integer, got float"),
    _entry("with a truth value", ["x", "F32", [True]], "[0]: expected an integer, got bool"),
    _entry("with nested numbers", ["x", "F32", [[4]]], "ValueError"),
)
