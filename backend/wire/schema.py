"""Frozen dataclasses to msgpack-ready maps and back, with every field checked on both ways.

``write`` turns a message into plain maps, lists and scalars; ``read`` is its inverse and takes nothing on trust: any
bytes either give a valid instance or raise :class:`SchemaError`. Field types: ``int``, ``float``, ``str``, ``bool``,
``Literal`` of strings, ``X | None`` (with a default: None is left out, never sent), ``tuple[X, ...]``, ``dict[str,
Scalar]`` and dataclasses. Bounds stand in a field's metadata (see :func:`bounded`). Equal messages give equal maps:
floats are always floats, options are in order of name.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from .cursor import UNREADABLE, Cursor
from .limits import MAP_LENGTH
from .scalars import Bounds, SchemaError, boolean, bounded, check_option, integer, literal, number, string

__all__ = ["Bounds", "Kind", "Scalar", "SchemaError", "bounded", "kinds_of", "read", "write"]

T = TypeVar("T")
Scalar = str | int | float | bool


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """How the values of one type cross the wire. Both functions raise SchemaError."""

    read: Callable[[Cursor], Any]
    """The value at the cursor."""
    write: Callable[[Any], Any]
    """A value as msgpack takes it."""
    required: bool = True
    """Whether the field must be there."""


def read(cls: type[T], cursor: Cursor) -> T:
    """The instance of ``cls`` at the cursor.

    Raises:
        SchemaError: a field is missing, unknown, there twice, of another type or out of its bounds, or the bytes are
        not msgpack.
    """
    kinds = kinds_of(cls)
    values: dict[str, Any] = {}
    name = ""
    try:
        for _ in range(_map_length(cursor)):
            key = cursor.scalar()
            name = key if type(key) is str else _refuse_name()
            kind = kinds.get(name)
            if kind is None:
                _pass_over(cursor)
            elif name in values:
                raise SchemaError("the field is there twice")
            else:
                values[name] = kind.read(cursor)
    except SchemaError as error:
        error.within(name)
        raise
    except UNREADABLE as error:
        raise SchemaError(
            f"not readable, or not the kind of value expected here ({type(error).__name__})", name
        ) from error
    if len(values) != len(kinds):
        _check_complete(kinds, values)
    return cls(**values)


def write(message: Any) -> dict[str, Any]:
    """A message as nested plain maps, lists and scalars.

    Raises:
        SchemaError: a value breaks the type or the bounds of its field.
    """
    plain: dict[str, Any] = {}
    name = ""
    try:
        for name, kind in kinds_of(type(message)).items():
            value = getattr(message, name)
            if value is not None or kind.required:
                plain[name] = kind.write(value)
    except SchemaError as error:
        error.within(name)
        raise
    return plain


def _map_length(cursor: Cursor) -> int:
    length = cursor.map_length()
    if length > MAP_LENGTH:
        raise SchemaError(f"a map of {length}, at most {MAP_LENGTH} are allowed")
    return length


def _refuse_name() -> NoReturn:
    raise SchemaError("what follows is not the name of a field")


def _pass_over(cursor: Cursor) -> None:
    if not cursor.lenient:
        raise SchemaError("unknown field")
    cursor.skip()


def _check_complete(kinds: dict[str, Kind], values: dict[str, Any]) -> None:
    for name, kind in kinds.items():
        if kind.required and name not in values:
            raise SchemaError("missing", name)


def kinds_of(cls: type) -> dict[str, Kind]:
    """Field name -> how the field crosses the wire. Worked out at the first use of a class.

    Raises:
        TypeError: a field has a type that cannot cross: a mistake in the class.
    """
    kinds = _KINDS.get(cls)
    if kinds is None:
        kinds = _KINDS[cls] = _kinds(cls)
    return kinds


_KINDS: dict[type, dict[str, Kind]] = {}


def _kinds(cls: type) -> dict[str, Kind]:
    hints = typing.get_type_hints(cls)
    kinds = {}
    for f in dataclasses.fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        kind = _kind(hints[f.name], f.metadata.get("bounds", Bounds()))
        if _is_optional(hints[f.name]) and f.default is not None:
            raise TypeError(f"{cls.__name__}.{f.name} may be None, so None must be its default")
        kinds[f.name] = dataclasses.replace(kind, required=required)
    return kinds


def _is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _kind(hint: Any, bounds: Bounds) -> Kind:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if _is_optional(hint) and origin in (types.UnionType, typing.Union) and len(args) == 2:
        return _kind(next(arg for arg in args if arg is not type(None)), bounds)
    if origin is typing.Literal:
        return _scalar(literal(frozenset(args)))
    if origin is tuple:
        return _array(_kind(args[0], bounds), bounds.items)
    if hint == dict[str, Scalar]:
        return Kind(_read_options, _write_options)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return Kind(lambda cursor: read(hint, cursor), lambda value: write(_instance(hint, value)))
    scalars = {int: integer(bounds), float: number(bounds), str: string(bounds), bool: boolean}
    if hint not in scalars:
        raise TypeError(f"a message field cannot have the type {hint!r}")
    return _scalar(scalars[hint])


def _scalar(check: Callable[[Any], Any]) -> Kind:
    return Kind(lambda cursor: check(cursor.scalar()), check)


def _instance(cls: type, value: Any) -> Any:
    if type(value) is not cls:
        raise SchemaError(f"expected {cls.__name__}, got {type(value).__name__}")
    return value


def _array(inner: Kind, longest: int) -> Kind:
    read_item, write_item = inner.read, inner.write

    def read_array(cursor: Cursor) -> tuple[Any, ...]:
        length = cursor.array_length()
        if length > longest:
            raise SchemaError(f"{length} elements, at most {longest} are allowed")
        items: list[Any] = []
        try:
            for _ in range(length):
                items.append(read_item(cursor))  # one by one: the length tells which one was refused
        except SchemaError as error:
            error.within(f"[{len(items)}]")
            raise
        return tuple(items)

    def write_array(value: Any) -> list[Any]:
        if not isinstance(value, tuple):  # a torch.Size is one
            raise SchemaError(f"expected a tuple, got {type(value).__name__}")
        if len(value) > longest:
            raise SchemaError(f"{len(value)} elements, at most {longest} are allowed")
        items: list[Any] = []
        try:
            for item in value:
                items.append(write_item(item))
        except SchemaError as error:
            error.within(f"[{len(items)}]")
            raise
        return items

    return Kind(read_array, write_array)


def _read_options(cursor: Cursor) -> dict[str, Scalar]:
    options: dict[str, Scalar] = {}
    for _ in range(_map_length(cursor)):
        name = cursor.scalar()
        value = cursor.scalar()
        check_option(name, value)
        if name in options:
            raise SchemaError("the option is there twice", name)
        options[name] = value
    return options


def _write_options(value: Any) -> dict[str, Scalar]:
    if type(value) is not dict or len(value) > MAP_LENGTH:
        raise SchemaError(f"expected a dict of at most {MAP_LENGTH} options")
    for name, item in value.items():
        check_option(name, item)
    return dict(sorted(value.items()))
