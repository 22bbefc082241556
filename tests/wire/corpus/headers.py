"""Headers that are not msgpack, not the map they should be, or claim more than they hold."""

from __future__ import annotations

import msgpack

from ..examples import EXAMPLES
from ..raw import Node, Pairs, Raw, headed, pack, parse
from .row import Row, editing, setting

PING = EXAMPLES["Ping"].frames()[1]
UNREADABLE = "not readable"
NOT_A_HEADER = "the header is not a map of type, body, tensors, manifest"
WRONG_ORDER = "the header is not a map of type, body, tensors, manifest, in this order"


def _bytes(name: str, header: bytes, says: str = UNREADABLE) -> Row:
    return Row(f"header: {name}", headed(header), says)


def _nonce(name: str, value: bytes, says: str = "Ping.nonce: not readable") -> Row:
    """A Ping whose nonce is these bytes."""
    return Row(f"nonce: {name}", setting("Ping", "body.nonce", Raw(value), says).frames, says)


def _reorder(*places: int) -> Row:
    def edit(tree: Node) -> None:
        tree[:] = [tree[place] for place in places]

    return editing("Ping", f"header keys in the order {places}", edit, WRONG_ORDER)


def _map(name: str, pairs: Pairs, says: str) -> Row:
    return Row(f"header: {name}", headed(pack(pairs)), says)


def _without(key: str) -> Pairs:
    return Pairs(pair for pair in parse(PING) if pair[0] != key)


def _with_key(place: int, key: object) -> Pairs:
    tree = parse(PING)
    tree[place] = (key, tree[place][1])
    return tree


NESTED_ARRAYS = b"\xdc\x04\x00" * 1_020
EMPTY_MAPS = b"\xdc\x00\x3f" + (b"\xdc\x04\x00" + b"\x80" * 1_024) * 60
EMPTY_ARRAYS = b"\xdc\x00\x3f" + (b"\xdc\x04\x00" + b"\x90" * 1_024) * 60

HEADERS = (
    _bytes("empty", b""),
    _bytes("nil", b"\xc0"),
    _bytes("the marker that msgpack never uses", b"\xc1"),
    _bytes("an integer", b"\x01"),
    _bytes("text", msgpack.packb("Ping")),
    _bytes("an array", msgpack.packb(["Ping", {"nonce": 1}, [], False])),
    _bytes("an empty map", b"\x80", NOT_A_HEADER),
    _bytes("a map of 4 with nothing in it", b"\x84"),
    _bytes("a map that claims 2^32 - 1 keys", b"\xdf\xff\xff\xff\xff", NOT_A_HEADER),
    _bytes("a map that claims 65,535 keys", b"\xde\xff\xff", NOT_A_HEADER),
    _bytes("cut after the first key", PING[:6]),
    _bytes("cut in the middle", PING[: len(PING) // 2]),
    _bytes("one byte short", PING[:-1]),
    _bytes("one byte more", PING + b"\xc0", "bytes follow the header's map"),
    _bytes("twice", PING + PING, "bytes follow the header's map"),
    _bytes("JSON", b'{"type": "Ping", "body": {"nonce": 1}}', UNREADABLE),
    _bytes("a pickle that would run code", b"cposix\nsystem\n(S'id'\ntR.", UNREADABLE),
    _bytes("64 KiB and one byte", PING + bytes(65_537 - len(PING)), "the header has 65537 bytes, at most 65536"),
    _bytes("4 MiB", bytes(4 << 20), "the header has 4194304 bytes"),
    _bytes("1,020 nested arrays that claim 1,024 elements each", NESTED_ARRAYS),
    _bytes("60,000 nested arrays of one", b"\x91" * 60_000),
    _bytes("20,000 nested maps of one", b"\x81\xa1a" * 20_000, NOT_A_HEADER),
    _bytes("61,440 empty maps", EMPTY_MAPS),
    _map("no type", _without("type"), NOT_A_HEADER),
    _map("no body", _without("body"), NOT_A_HEADER),
    _map("no tensors", _without("tensors"), NOT_A_HEADER),
    _map("no manifest", _without("manifest"), NOT_A_HEADER),
    _map("one key too many", Pairs([*parse(PING), ("code", "import os")]), NOT_A_HEADER),
    _map("an unknown key for a known one", _with_key(2, "tensor"), WRONG_ORDER),
    _map("type twice", _with_key(1, "type"), WRONG_ORDER),
    _map("manifest twice", _with_key(2, "manifest"), WRONG_ORDER),
    _map("a key that is binary", _with_key(0, b"type"), UNREADABLE),
    _map("a key that is an integer", _with_key(0, 0), WRONG_ORDER),
    _map("a key that is nil", _with_key(1, None), WRONG_ORDER),
    _map("a key that is an array", _with_key(3, []), UNREADABLE),
    _reorder(1, 0, 2, 3),
    _reorder(3, 2, 1, 0),
    _reorder(0, 1, 3, 2),
    setting("Ping", "type", "", "unknown message type ''"),
    setting("Ping", "type", "ping", "unknown message type 'ping'"),
    setting("Ping", "type", "Ping ", "unknown message type 'Ping '"),
    setting("Ping", "type", "ManifestEntry", "unknown message type 'ManifestEntry'"),
    setting("Ping", "type", "__class__", "unknown message type '__class__'"),
    setting("Ping", "type", "P" * 60_000, "unknown message type 'PPPP"),
    setting("Ping", "type", "line\nbreak", "unknown message type 'line\\nbreak'"),
    setting("Ping", "type", None, "unknown message type 'None'"),
    setting("Ping", "type", 3, "unknown message type '3'"),
    setting("Ping", "type", b"Ping", UNREADABLE),
    setting("Ping", "type", ["Ping"], UNREADABLE),
    setting("Ping", "type", "Pong", "Pong.state: missing"),
    setting("Ping", "body", None, "Ping: not readable"),
    setting("Ping", "body", 7, "Ping: not readable"),
    setting("Ping", "body", "nonce", "Ping: not readable"),
    setting("Ping", "body", [1], "Ping: not readable"),
    setting("Ping", "body", [["nonce", 1]], "Ping: not readable"),
    setting("Ping", "manifest", None, "manifest: expected true or false"),
    setting("Ping", "manifest", 0, "manifest: expected true or false"),
    setting("Ping", "manifest", "false", "manifest: expected true or false"),
    setting("Ping", "manifest", [], UNREADABLE),
    setting("Ping", "manifest", True, "0 frames follow the header, it announces 1"),
    _nonce("an array that claims 2^32 - 1 elements", b"\xdd\xff\xff\xff\xff"),
    _nonce("a map that claims 2^32 - 1 keys", b"\xdf\xff\xff\xff\xff"),
    _nonce("text that claims 4 GiB", b"\xdb\xff\xff\xff\xff"),
    _nonce("binary that claims 4 GiB", b"\xc6\xff\xff\xff\xff"),
    _nonce("an extension that claims 4 GiB", b"\xc9\xff\xff\xff\xff\x01"),
    _nonce("nested arrays that claim 1,024 elements each", NESTED_ARRAYS),
    _nonce("61,440 empty arrays", EMPTY_ARRAYS),
    _nonce("an empty array", b"\x90"),
    _nonce("an empty map", b"\x80"),
    _nonce("an array of one", b"\x91\x01"),
    _nonce("a map of one", b"\x81\xa1a\x01"),
    _nonce("the marker that msgpack never uses", b"\xc1"),
    _nonce("a timestamp of 32 bits", b"\xd6\xff\x00\x00\x00\x01"),
    _nonce("a timestamp of 96 bits", b"\xc7\x0c\xff" + bytes(12)),
    _nonce("a timestamp of no bits", b"\xc7\x00\xff"),
    _nonce("an extension of one byte", b"\xd4\x05\x00"),
    _nonce("an empty extension", b"\xc7\x00\x05", "Ping.nonce: expected an integer, got ExtType"),
    _nonce("empty binary", b"\xc4\x00", "Ping.nonce: expected an integer, got bytes"),
    _nonce("binary", b"\xc4\x01a"),
    _nonce("nothing", b"", "Ping.nonce: expected an integer, got str"),
)
