"""Frozen dataclasses to msgpack-ready maps and back, with every field checked.

``pack`` turns a message into plain maps, lists and scalars. ``unpack`` is its inverse and takes nothing on trust: any input either
gives a valid instance or raises :class:`SchemaError`. Supported field types: ``int``, ``float``, ``str``, ``bool``, ``Literal``,
``X | None``, ``tuple[X, ...]``, ``dict[str, scalar]`` and nested dataclasses. Bounds stand in a field's metadata (see :func:`bounded`).
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from .limits import ARRAY_LENGTH, MAP_LENGTH, TEXT_LENGTH

T = TypeVar("T")
Check = Callable[[Any, str], Any]
Scalar = str | int | float | bool

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class SchemaError(ValueError):
    """A value is not what its field says. The text names the field, what was expected and what came."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a field allows beyond its type."""

    low: float = -math.inf
    """Smallest number."""
    high: float = math.inf
    """Largest number."""
    length: int = ARRAY_LENGTH
    """Most elements of a tuple, most characters of a string."""
    pattern: re.Pattern[str] | None = None
    """What a string must match in full."""


def bounded(
    *, low: float = -math.inf, high: float = math.inf, length: int = ARRAY_LENGTH, pattern: str | None = None
) -> dict[str, Any]:
    """Field metadata that carries :class:`Bounds`: ``field(metadata=bounded(low=0))``."""
    compiled = re.compile(pattern) if pattern else None
    return {"bounds": Bounds(low=low, high=high, length=length, pattern=compiled)}


def pack(message: Any) -> dict[str, Any]:
    """A dataclass as nested plain maps and lists."""
    return {f.name: _plain(getattr(message, f.name)) for f in dataclasses.fields(message)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return pack(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def unpack(cls: type[T], value: Any, *, where: str = "", lenient: bool = False) -> T:
    """Build ``cls`` from plain data.

    ``lenient`` ignores fields that ``cls`` does not know: right only for a peer of a later minor version.

    Raises:
        SchemaError: a field is missing, unknown, of another type or out of its bounds.
    """
    where = where or cls.__name__
    if type(value) is not dict:
        raise SchemaError(f"{where}: expected a map, got {type(value).__name__}")
    checks = _field_checks(cls)
    if not lenient:
        unknown = [key for key in value if key not in checks]
        if unknown:
            raise SchemaError(f"{where}: unknown field {str(unknown[0])[:64]!r}")
    known: dict[str, Any] = {}
    for name, (check, required) in checks.items():
        if name in value:
            known[name] = check(value[name], f"{where}.{name}")
        elif required:
            raise SchemaError(f"{where}.{name}: missing")
    return cls(**known)


@cache
def _field_checks(cls: type) -> dict[str, tuple[Check, bool]]:
    hints = typing.get_type_hints(cls)
    checks: dict[str, tuple[Check, bool]] = {}
    for f in dataclasses.fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        checks[f.name] = (_check_for(hints[f.name], f.metadata.get("bounds", Bounds())), required)
    return checks


def _check_for(hint: Any, bounds: Bounds) -> Check:
    """The check of one type. Raises TypeError at first use of a message class whose field has an unsupported type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return _literal(frozenset(args))
    if origin is types.UnionType or origin is typing.Union:
        return _optional(_check_for(next(a for a in args if a is not type(None)), bounds))
    if origin is tuple:
        return _tuple(_check_for(args[0], bounds), bounds.length)
    if origin is dict:
        return _options
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return lambda value, where: unpack(hint, value, where=where)
    scalars: dict[Any, Check] = {int: _integer(bounds), float: _number(bounds), str: _string(bounds), bool: _boolean}
    if hint not in scalars:
        raise TypeError(f"a message field cannot have the type {hint!r}")
    return scalars[hint]


def _literal(allowed: frozenset[str]) -> Check:
    def check(value: Any, where: str) -> Any:
        if type(value) is not str or value not in allowed:
            raise SchemaError(f"{where}: expected one of {sorted(allowed)}, got {_short(value)}")
        return value

    return check


def _optional(inner: Check) -> Check:
    return lambda value, where: None if value is None else inner(value, where)


def _tuple(inner: Check, length: int) -> Check:
    def check(value: Any, where: str) -> Any:
        if type(value) is not list:
            raise SchemaError(f"{where}: expected an array, got {type(value).__name__}")
        if len(value) > length:
            raise SchemaError(f"{where}: {len(value)} elements, at most {length} are allowed")
        return tuple(inner(item, f"{where}[{index}]") for index, item in enumerate(value))

    return check


def _integer(bounds: Bounds) -> Check:
    low, high = max(bounds.low, _INT64_MIN), min(bounds.high, _INT64_MAX)

    def check(value: Any, where: str) -> Any:
        if type(value) is not int:
            raise SchemaError(f"{where}: expected an integer, got {type(value).__name__}")
        if not low <= value <= high:
            raise SchemaError(f"{where}: {value} is not within {low:.0f} to {high:.0f}")
        return value

    return check


def _number(bounds: Bounds) -> Check:
    def check(value: Any, where: str) -> Any:
        if type(value) not in (int, float):
            raise SchemaError(f"{where}: expected a number, got {type(value).__name__}")
        number = float(value)
        if not math.isfinite(number) or not bounds.low <= number <= bounds.high:
            raise SchemaError(f"{where}: {number} is not within {bounds.low} to {bounds.high}")
        return number

    return check


def _string(bounds: Bounds) -> Check:
    def check(value: Any, where: str) -> Any:
        if type(value) is not str:
            raise SchemaError(f"{where}: expected a string, got {type(value).__name__}")
        if len(value) > bounds.length:
            raise SchemaError(f"{where}: {len(value)} characters, at most {bounds.length} are allowed")
        if bounds.pattern and not bounds.pattern.fullmatch(value):
            raise SchemaError(f"{where}: {_short(value)} does not match {bounds.pattern.pattern}")
        return value

    return check


def _boolean(value: Any, where: str) -> Any:
    if type(value) is not bool:
        raise SchemaError(f"{where}: expected true or false, got {type(value).__name__}")
    return value


def _options(value: Any, where: str) -> Any:
    """``dict[str, scalar]``: short names to text, finite numbers or truth values."""
    if type(value) is not dict or len(value) > MAP_LENGTH:
        raise SchemaError(f"{where}: expected a map of at most {MAP_LENGTH} options")
    for key, item in value.items():
        if type(key) is not str or not 0 < len(key) <= 64:
            raise SchemaError(f"{where}: an option name must be 1 to 64 characters, got {_short(key)}")
        if type(item) not in (str, int, float, bool):
            raise SchemaError(f"{where}.{key}: expected text, a number or a truth value, got {type(item).__name__}")
        if type(item) is str and len(item) > TEXT_LENGTH:
            raise SchemaError(f"{where}.{key}: {len(item)} characters, at most {TEXT_LENGTH} are allowed")
        if type(item) is int and not _INT64_MIN <= item <= _INT64_MAX:
            raise SchemaError(f"{where}.{key}: beyond 64 bits")
        if type(item) is float and not math.isfinite(item):
            raise SchemaError(f"{where}.{key}: {item} is not finite")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
