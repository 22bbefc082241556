"""The checks of single values: what a field may hold, and the error that says where it does not."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from .limits import ARRAY_LENGTH, OPTION_NAME_LENGTH, TEXT_LENGTH

Check = Callable[[Any], Any]
"""Returns the value, in its canonical type, or raises SchemaError."""

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class SchemaError(ValueError):
    """A value is not what its field says. The text names the field, what was expected and what came."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = _shown(where)

    def within(self, name: str) -> None:
        """Say that the field meant so far lies inside ``name``. Called on the way out: a good message pays nothing."""
        dot = "." if name and self.where and not self.where.startswith("[") else ""
        self.where = f"{_shown(name)}{dot}{self.where}"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


def _shown(name: str) -> str:
    """A name that a peer may have chosen, fit for a log: short, and without line breaks."""
    name = name if len(name) <= 80 else f"{name[:77]}..."
    return name if name.isprintable() else repr(name)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a field allows beyond its type."""

    low: float = -math.inf
    """Smallest number."""
    high: float = math.inf
    """Largest number."""
    length: int = TEXT_LENGTH
    """Most characters of a string."""
    items: int = ARRAY_LENGTH
    """Most elements of a tuple; the other bounds are those of each."""
    pattern: re.Pattern[str] | None = None
    """What a string must match in full."""
    secret: bool = False
    """Never quoted in an error."""


def bounded(
    *,
    low: float = -math.inf,
    high: float = math.inf,
    length: int = TEXT_LENGTH,
    items: int = ARRAY_LENGTH,
    pattern: str | None = None,
    secret: bool = False,
) -> dict[str, Any]:
    """Field metadata that carries :class:`Bounds`: ``field(metadata=bounded(low=0))``."""
    compiled = re.compile(pattern) if pattern else None
    return {"bounds": Bounds(low=low, high=high, length=length, items=items, pattern=compiled, secret=secret)}


def literal(allowed: frozenset[str]) -> Check:
    """One of some words."""

    def check(value: Any) -> str:
        if type(value) is not str or value not in allowed:
            raise SchemaError(f"expected one of {', '.join(sorted(allowed))}, got {_short(value)}")
        return value

    return check


def integer(bounds: Bounds) -> Check:
    """A whole number of at most 64 bits. A truth value is none, and neither is 1.0."""
    low, high = max(bounds.low, _INT64_MIN), min(bounds.high, _INT64_MAX)

    def check(value: Any) -> int:
        if type(value) is not int:
            raise SchemaError(f"expected an integer, got {type(value).__name__}")
        if not low <= value <= high:
            raise SchemaError(f"{_short(value)} is not within {int(low)} to {int(high)}")
        return value

    return check


def number(bounds: Bounds) -> Check:
    """A finite number; a whole one becomes a float."""

    def check(value: Any) -> float:
        if type(value) is int and _INT64_MIN <= value <= _INT64_MAX:
            value = float(value)
        if type(value) is not float:
            raise SchemaError(f"expected a number, got {type(value).__name__}")
        if not bounds.low <= value <= bounds.high or not math.isfinite(value):
            raise SchemaError(f"{value} is not within {bounds.low} to {bounds.high}")
        return value

    return check


def string(bounds: Bounds) -> Check:
    """Unicode text without lone surrogates (which have no UTF-8 form)."""
    longest, pattern = bounds.length, bounds.pattern

    def check(value: Any) -> str:
        if type(value) is not str:
            raise SchemaError(f"expected a string, got {type(value).__name__}")
        if len(value) > longest:
            raise SchemaError(f"{len(value)} characters, at most {longest} are allowed")
        if pattern is not None and not pattern.fullmatch(value):
            quoted = "the value" if bounds.secret else _short(value)
            raise SchemaError(f"{quoted} does not match {pattern.pattern}")
        return value

    return check


def boolean(value: Any) -> bool:
    """A truth value; 0 and 1 are none."""
    if type(value) is not bool:
        raise SchemaError(f"expected true or false, got {type(value).__name__}")
    return value


def check_option(name: Any, value: Any) -> None:
    """One entry of a ``dict[str, Scalar]``: a short name to text, a finite number or a truth value."""
    if type(name) is not str or not 0 < len(name) <= OPTION_NAME_LENGTH:
        raise SchemaError(f"the name of an option is 1 to {OPTION_NAME_LENGTH} characters, got {_short(name)}")
    check = _OPTIONS.get(type(value))
    if check is None:
        raise SchemaError(f"expected text, a number or a truth value, got {type(value).__name__}", name)
    try:
        check(value)
    except SchemaError as error:
        error.within(name)
        raise


_OPTIONS: dict[type, Check] = {
    str: string(Bounds(length=TEXT_LENGTH)),
    int: integer(Bounds()),
    float: number(Bounds()),
    bool: boolean,
}


def _short(value: Any) -> str:
    """A value for an error: never long, whatever a peer sent."""
    if type(value) is int and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[:80] if type(value) in (str, bytes) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
