"""Tensor rows of a header: names, dtypes and shapes that must be refused before anything is allocated for them."""

from __future__ import annotations

from ..raw import Node, Raw, edited, put
from .row import Row, editing, setting


def _row(name: str, row: Node, says: str, data: bytes = b"") -> Row:
    """An Upload of this one tensor."""

    def edit(tree: Node) -> None:
        put(tree, ["tensors"], [row])

    return Row(f"tensor: {name}", [*edited("Upload", edit)[:2], data], says)


def _shape(name: str, shape: Node, says: str, dtype: str = "F32") -> Row:
    return _row(f"shape {name}", ["x", dtype, shape], says, bytes(16))


def _dtype(dtype: Node, says: str = "expected one of BF16, BOOL") -> Row:
    return _row(f"dtype {str(dtype)[:40]!r}", ["x", dtype, [4]], says, bytes(16))


def _name(name: Node, says: str = "does not match") -> Row:
    return _row(f"name {str(name)[:40]!r}", [name, "U8", [1]], says, b"x")


def _many(count: int, says: str) -> Row:
    rows = [[f"t{i}", "U8", [1]] for i in range(count)]

    def edit(tree: Node) -> None:
        put(tree, ["tensors"], rows)

    return editing("Upload", f"{count} tensors", edit, says)


TENSOR_ROWS = (
    setting("Upload", "tensors", None, "not readable"),
    setting("Upload", "tensors", 1, "not readable"),
    setting("Upload", "tensors", Raw(b"\x80"), "not readable"),
    setting("Upload", "tensors", Raw(b"\xdd\xff\xff\xff\xff"), "4294967295 tensors, at most 64"),
    setting("Upload", "tensors", [None], "tensors[0]: no name, dtype and shape"),
    setting("Upload", "tensors", ["context"], "tensors[0]: no name, dtype and shape"),
    setting("Upload", "tensors.1", Raw(b"\x80"), "tensors[1]: no name, dtype and shape"),
    setting("Upload", "tensors.0", [], "tensors[0]: expected name, dtype and shape"),
    setting("Upload", "tensors.0", ["x", "U8"], "tensors[0]: expected name, dtype and shape"),
    setting("Upload", "tensors.0", ["x", "U8", [1], 0], "tensors[0]: expected name, dtype and shape"),
    setting("Upload", "tensors.2.0", "context", "two tensors have the same name"),
    _many(65, "65 tensors, at most 64"),
    _many(1_024, "1024 tensors, at most 64"),
    _name(""),
    _name("a b"),
    _name("a/b"),
    _name("../x"),
    _name("x\0"),
    _name("x\n"),
    _name("\u00e9"),
    _name("x" * 513, "513 characters, at most 512"),
    _name(None, "expected a string, got NoneType"),
    _name(7, "expected a string, got int"),
    _name(b"x", "no name, dtype and shape"),
    _name(["x"], "no name, dtype and shape"),
    _name(Raw(b"\xa3\xed\xa0\x80"), "no name, dtype and shape"),
    _dtype("F8"),
    _dtype("f32"),
    _dtype("float32"),
    _dtype("torch.float32"),
    _dtype("O"),
    _dtype("object"),
    _dtype("C64"),
    _dtype("I128"),
    _dtype(""),
    _dtype(None),
    _dtype(4),
    _dtype(["F32"], "no name, dtype and shape"),
    _shape("none", None, "no name, dtype and shape"),
    _shape("a number", 4, "no name, dtype and shape"),
    _shape("text", "4", "no name, dtype and shape"),
    _shape("a map", Raw(b"\x81\x00\x04"), "no name, dtype and shape"),
    _shape("-1", [-1], "[0]: -1 is not within 0 to 2147483647"),
    _shape("-4 x -1, whose product is right", [-4, -1], "[0]: -4 is not within"),
    _shape("4 x -1", [4, -1], "[1]: -1 is not within"),
    _shape("-2^63", [-(2**63)], "is not within 0 to 2147483647"),
    _shape("4.0", [4.0], "expected an integer, got float"),
    _shape("NaN", [float("nan")], "expected an integer, got float"),
    _shape("true x 4", [True, 4], "[0]: expected an integer, got bool"),
    _shape("'4'", ["4"], "expected an integer, got str"),
    _shape("[[4]]", [[4]], "no name, dtype and shape"),
    _shape("nil", [None], "expected an integer, got NoneType"),
    _shape("seven dimensions", [1, 1, 1, 1, 1, 1, 4], "7 elements, at most 6"),
    _shape("1,024 dimensions", [1] * 1_024, "1024 elements, at most 6"),
    _shape("2^31", [2**31], "2147483648 is not within 0 to 2147483647"),
    _shape("2^64 - 1", [2**64 - 1], "18446744073709551615 is not within"),
    _shape("a product of 2^64, which is 0 in 64 bits", [2**30, 2**30, 4], "x: 18446744073709551616 bytes, at most"),
    _shape("a product of 2^32 + 16, which is 16 in 32 bits", [4, 2**28 + 1], "x: 4294967312 bytes, at most 268435456"),
    _shape("six times 2^31 - 1", [2**31 - 1] * 6, "bytes, at most 268435456 are allowed"),
    _shape("one byte over 256 MiB", [2**28 + 1], "x: 268435457 bytes, at most 268435456", dtype="U8"),
    _shape("a zero that hides 2^62", [0, 2**31 - 1, 2**31 - 1], "x: the frame has 16 bytes, its shape says 0"),
    _shape("too small", [3], "x: the frame has 16 bytes, its shape says 12"),
    _shape("too large", [5], "x: the frame has 16 bytes, its shape says 20"),
    _shape("no dimensions", [], "x: the frame has 16 bytes, its shape says 4"),
    _shape("right for F32, said to be BF16", [4], "x: the frame has 16 bytes, its shape says 8", dtype="BF16"),
    _shape("right for F32, said to be F64", [4], "x: the frame has 16 bytes, its shape says 32", dtype="F64"),
    _row("256 MiB claimed, none sent", ["x", "U8", [2**28]], "x: the frame has 0 bytes, its shape says 268435456"),
)
