"""The schema engine on classes of its own: what it supports, and that it says no to everything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgpack
import pytest
from tutti.backend.wire import messages
from tutti.backend.wire.cursor import Cursor
from tutti.backend.wire.schema import Scalar, SchemaError, bounded, kinds_of, read, write
from tutti.backend.wire.tensors import TensorSpec


@dataclass(frozen=True)
class Inner:
    word: Literal["a", "b"]
    deeper: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...] = field(default=(), metadata=bounded(items=2))
    perhaps: Inner | None = None
    number: float | None = field(default=None, metadata=bounded(low=0, high=1))
    options: dict[str, Scalar] = field(default_factory=dict)


WHOLE = Outer(
    inner=Inner(word="a", deeper=((1, 2), (), (3,))),
    many=(Inner(word="b"),),
    perhaps=Inner(word="b"),
    number=0.5,
    options={"x": 1, "y": "z", "yes": True, "half": 0.5},
)


def cursor(value: Any, *, lenient: bool = False) -> Cursor:
    return Cursor(msgpack.packb(value), string_bytes=1_000, container_length=1_000, lenient=lenient)


def test_what_is_written_is_read_again() -> None:
    assert read(Outer, cursor(write(WHOLE))) == WHOLE


def test_none_is_left_out_and_read_as_absent() -> None:
    least = Outer(inner=Inner(word="a"))
    assert "perhaps" not in write(least)
    assert "number" not in write(least)
    assert read(Outer, cursor(write(least))) == least


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"inner": {"word": "c"}}, "inner.word: "),
        ({"inner": {"word": "a", "deeper": [[1], [2, "3"]]}}, "inner.deeper[1][1]: "),
        ({"inner": {"word": "a", "deeper": [[1], 2]}}, "inner.deeper: "),
        ({"many": [{"word": "a"}, {"word": 1}]}, "many[1].word: "),
        ({"many": [{"word": "a"}] * 3}, "many: 3 elements, at most 2"),
        ({"perhaps": {}}, "perhaps.word: missing"),
        ({"perhaps": None}, "perhaps: not readable"),
        ({"number": 1.5}, "number: 1.5 is not within 0 to 1"),
        ({"number": None}, "number: expected a number, got NoneType"),
        ({"options": {"x": None}}, "options.x: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_names_the_place(change: dict[str, Any], where: str) -> None:
    with pytest.raises(SchemaError) as caught:
        read(Outer, cursor(write(WHOLE) | change))
    assert str(caught.value).startswith(where)


def test_unknown_fields_are_passed_over_only_when_the_cursor_is_lenient() -> None:
    strange = write(WHOLE) | {"new": [{"a": [1]}]}
    strange["inner"] |= {"new": b"x" * 500}
    assert read(Outer, cursor(strange, lenient=True)) == WHOLE
    with pytest.raises(SchemaError, match=r"inner\.new: unknown field"):
        read(Outer, cursor(strange))


def test_reading_leaves_the_cursor_behind_the_value() -> None:
    data = msgpack.packb(write(WHOLE))
    at = Cursor(data + b"\x07", string_bytes=1_000, container_length=1_000)
    read(Outer, at)
    assert not at.at_end()
    assert at.scalar() == 7
    assert at.at_end()


@pytest.mark.parametrize("hint", [bytes, object, list[int], dict[str, int], set, "int | str", complex, Any], ids=str)
def test_a_class_with_a_field_that_cannot_cross_is_refused_at_its_first_use(hint: Any) -> None:
    broken = dataclass(type("Broken", (), {"__annotations__": {"x": hint}}))
    with pytest.raises(TypeError):
        kinds_of(broken)


def test_a_field_that_may_be_none_must_be_none_by_default() -> None:
    broken = dataclass(type("Broken", (), {"__annotations__": {"x": int | None}}))
    with pytest.raises(TypeError, match=r"Broken\.x may be None, so None must be its default"):
        kinds_of(broken)


@pytest.mark.parametrize(
    "cls", [*messages.MESSAGES.values(), TensorSpec, messages.ManifestEntry], ids=lambda cls: cls.__name__
)
def test_every_class_of_the_protocol_is_frozen_documented_and_can_cross(cls: type) -> None:
    assert kinds_of(cls)
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")  # what dataclass writes where nobody did
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert not hasattr(cls, "__dict__") or "__slots__" in vars(cls)
