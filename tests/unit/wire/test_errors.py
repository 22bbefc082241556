"""The tree of errors: drawn as it is, one code for each, and it crosses the wire."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tutti.backend import errors
from tutti.backend.errors import ERRORS_BY_CODE, InternalError, TuttiError, from_wire
from tutti.backend.wire.codec import decode, encode
from tutti.backend.wire.messages import Failed

CLASSES = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, TuttiError)}


def drawn() -> list[tuple[str, str | None]]:
    """Class and parent of every line of the tree in the module's docstring."""
    path: list[str] = []
    rows: list[tuple[str, str | None]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+)(  +\S.*)?$", line)
        if not found or (found["name"] != "TuttiError" and "─" not in found["branch"]):
            continue
        depth = len(found["branch"]) // 4
        del path[depth:]
        rows.append((found["name"], path[-1] if path else None))
        path.append(found["name"])
    return rows


def test_the_drawing_shows_every_class_once_below_its_parent() -> None:
    actual = {(cls.__name__, None if cls is TuttiError else cls.__mro__[1].__name__) for cls in CLASSES}
    assert len(drawn()) == len(CLASSES)
    assert set(drawn()) == actual


def test_the_classes_stand_in_the_order_of_the_drawing() -> None:
    tree = ast.parse(Path(errors.__file__).read_text(encoding="utf-8"))
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == [name for name, _ in drawn()]


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in CLASSES]
    assert sorted(set(codes)) == sorted(codes)
    assert all("code" in vars(cls) for cls in CLASSES)
    assert {cls.code: cls for cls in CLASSES} == ERRORS_BY_CODE


def test_every_class_says_what_it_means() -> None:
    assert all((cls.__doc__ or "").strip().endswith(".") for cls in CLASSES)


CODES_OF_1_0 = {
    "auth_failed", "bad_checkpoint", "bad_plan", "bad_request", "busy", "cancelled", "connection", "connection_file",
    "daemon_unreachable", "draining", "error", "group_failed", "internal", "job_conflict", "local_protocol", "not_ready",
    "out_of_memory", "queue_full", "refused", "remote_protocol", "unknown_job", "unknown_model", "unsupported_family",
    "unsupported_input", "version_mismatch", "worker_died", "wrong_family",
}  # fmt: skip


def test_a_code_that_was_released_stays() -> None:
    assert set(ERRORS_BY_CODE) >= CODES_OF_1_0


@pytest.mark.parametrize("cls", sorted(CLASSES, key=lambda cls: cls.code), ids=lambda cls: cls.code)
def test_an_error_crosses_the_wire_as_itself(cls: type[TuttiError]) -> None:
    failed = Failed(code=cls.code, message="Do this. Because of that.")
    received = decode(encode(failed)).message
    rebuilt = from_wire(received.code, received.message)
    assert type(rebuilt) is cls
    assert rebuilt.message == str(rebuilt) == "Do this. Because of that."


def test_a_code_of_a_later_version_is_an_internal_error_that_quotes_it() -> None:
    rebuilt = from_wire("too_loud", "Turn it down.")
    assert type(rebuilt) is InternalError
    assert rebuilt.message == "Turn it down. [too_loud]"


def test_an_error_without_text_still_says_something() -> None:
    assert TuttiError().message == "error"
    assert InternalError().message == "internal"
