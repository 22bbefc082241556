"""The house rules that a machine can check in a source file: forbidden calls and words, sizes, swallowed exceptions.

Each rule takes a file's path and text and yields ``(line, what)``; ``tests/unit/test_house.py`` runs them over the repository.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70

Finding = tuple[int, str]
Rule = Callable[[PurePosixPath, str], Iterator[Finding]]

# Written in pieces, so that this file keeps its own rules.
_PICKLE_FAMILY = re.compile(
    r"(?<![.\w])(" + "|".join(["pick" + "le", "cloudpick" + "le", "di" + "ll", "shel" + "ve", "mar" + "shal"]) + r")\b"
)
_OBJECT_TRANSFER = re.compile(r"_py" + r"obj\b|broadcast_object" + r"_list|all_gather_object\b|torch\.lo" + r"ad\(")
_MACHINE = re.compile(
    "|".join(["/" + r"work/", "/" + r"root/", "python" + "hosted", "py" + r"pi\.org", "npm" + r"js\.org"])
)
_MARKER = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b")
_VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}


def no_code_from_data(path: PurePosixPath, text: str) -> Iterator[Finding]:
    """Outside tests: no object serialisation that runs code, no evaluation of strings."""
    if path.suffix != ".py" or path.parts[0] == "tests":
        return
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in (_PICKLE_FAMILY, _OBJECT_TRANSFER):
            if match := pattern.search(line):
                yield number, match[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            yield node.lineno, f"{node.func.id}()"


def no_machine_words(path: PurePosixPath, text: str) -> Iterator[Finding]:
    """No path of a developer's machine, no registry host name."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _MACHINE.search(line):
            yield number, match[0]


def no_left_over_markers(path: PurePosixPath, text: str) -> Iterator[Finding]:
    """Nothing is left to be done later."""
    for number, line in enumerate(text.splitlines(), 1):
        if path.suffix == ".py" and (match := _MARKER.search(line)):
            yield number, match[0]


def small_files_and_functions(path: PurePosixPath, text: str) -> Iterator[Finding]:
    """At most 500 lines a file and 70 a function."""
    if path.suffix != ".py":
        return
    if text.count("\n") > MAX_FILE_LINES:
        yield 1, f"{text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno
            if length > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines"


def says_what_it_is_for(path: PurePosixPath, text: str) -> Iterator[Finding]:
    """A module has a docstring (an empty file needs none) and a name that says something."""
    if path.suffix != ".py":
        return
    if text.strip() and ast.get_docstring(ast.parse(text)) is None:
        yield 1, "no docstring"
    if path.stem in _VAGUE_NAMES:
        yield 1, f"named {path.name}"


def no_swallowed_exceptions(path: PurePosixPath, text: str) -> Iterator[Finding]:
    """No handler for every exception that does nothing."""
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and all(isinstance(statement, ast.Pass) for statement in node.body):
            caught = node.type.id if isinstance(node.type, ast.Name) else ""
            if node.type is None or caught in ("Exception", "BaseException"):
                yield node.lineno, "swallowed exception"


RULES: tuple[Rule, ...] = (
    no_code_from_data,
    no_machine_words,
    no_left_over_markers,
    small_files_and_functions,
    says_what_it_is_for,
    no_swallowed_exceptions,
)
