"""Hypothesis strategies for whole messages, worked out from the dataclasses: a new field is tried without being listed here."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from tutti.backend.wire import limits
from tutti.backend.wire import messages as m
from tutti.backend.wire.codec import Received
from tutti.backend.wire.dtypes import ITEM_BYTES
from tutti.backend.wire.schema import Bounds, Scalar
from tutti.backend.wire.tensors import TensorSpec, WireTensor

FEW = 4
"""Most elements drawn where a bound allows more."""

INT64 = 2**63

OPTIONS = st.dictionaries(
    st.text(min_size=1, max_size=limits.OPTION_NAME_LENGTH),
    st.text(max_size=50)
    | st.integers(-INT64, INT64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans(),
    max_size=FEW,
)


def fields_of(cls: type) -> dict[str, SearchStrategy[Any]]:
    """Field name -> its legal values."""
    hints = typing.get_type_hints(cls)
    return {f.name: _values(hints[f.name], f.metadata.get("bounds", Bounds())) for f in dataclasses.fields(cls)}


def _values(hint: Any, bounds: Bounds) -> SearchStrategy[Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin in (types.UnionType, typing.Union):
        return st.none() | _values(next(arg for arg in args if arg is not type(None)), bounds)
    if origin is tuple:
        return st.lists(_values(args[0], bounds), max_size=min(bounds.items, FEW)).map(tuple)
    if hint == dict[str, Scalar]:
        return OPTIONS
    if dataclasses.is_dataclass(hint):
        return st.builds(hint, **fields_of(typing.cast(type, hint)))
    return _scalars(hint, bounds)


def _scalars(hint: Any, bounds: Bounds) -> SearchStrategy[Any]:
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(int(max(bounds.low, -INT64)), int(min(bounds.high, INT64 - 1)))
    if hint is float:
        low, high = (None if math.isinf(bound) else bound for bound in (bounds.low, bounds.high))
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if bounds.pattern is not None:
        return st.from_regex(bounds.pattern, fullmatch=True).filter(lambda text: len(text) <= bounds.length)
    return st.text(max_size=min(bounds.length, 60))


def tensors(
    dtypes: tuple[str, ...] = tuple(ITEM_BYTES), *, shape: tuple[int, ...] | None = None
) -> SearchStrategy[WireTensor]:
    """A small tensor of one of the dtypes."""

    @st.composite
    def draw_tensor(draw: DrawFn) -> WireTensor:
        dims = shape if shape is not None else draw(st.lists(st.integers(0, 3), max_size=limits.TENSOR_DIMS).map(tuple))
        dtype = draw(st.sampled_from(dtypes))
        size = math.prod(dims) * ITEM_BYTES[dtype]
        return WireTensor(dtype=typing.cast(Any, dtype), shape=dims, data=draw(st.binary(min_size=size, max_size=size)))

    return draw_tensor()


LATENT_SHAPES = st.lists(st.integers(1, 3), min_size=limits.LATENT_DIMS, max_size=limits.TENSOR_DIMS).map(tuple)
FLOATS = ("F64", "F32", "F16", "BF16")
Parts = dict[str, WireTensor]
TENSOR_NAMES = fields_of(TensorSpec)["name"]


@st.composite
def samples(draw: DrawFn) -> Received:
    """A Sample with all that belongs to it."""
    guided = draw(st.booleans())
    kinds = ["positive", "negative"] if guided else ["positive"] * draw(st.integers(1, 2))
    branches = tuple(m.Branch(kind=typing.cast(Any, kind), options=draw(OPTIONS)) for kind in kinds)
    cfg = draw(st.floats(1.5, 30.0) | st.floats(-3.0, 0.5)) if guided else 1.0
    message = draw(st.builds(m.Sample, **fields_of(m.Sample) | {"branches": st.just(branches), "cfg": st.just(cfg)}))
    shape = draw(LATENT_SHAPES)
    parts: Parts = {
        "noise": draw(tensors(("F32",), shape=shape)),
        "sigmas": draw(tensors(("F32",), shape=(draw(st.integers(1, 5)),))),
    }
    if draw(st.booleans()):
        parts["latent"] = draw(tensors(("F32",), shape=shape))
    if draw(st.booleans()):
        mask = tuple(draw(st.sampled_from((1, size))) for size in shape[draw(st.integers(0, len(shape))) :])
        parts["mask"] = draw(tensors(("F32",), shape=mask))
    for index in range(len(branches)):
        parts |= {
            f"branch.{index}.{name}": draw(tensors())
            for name in draw(st.sets(TENSOR_NAMES, max_size=2))
            if len(name) < 400
        }
    return Received(message=message, tensors=parts)


@st.composite
def evaluates(draw: DrawFn) -> Received:
    """An Evaluate with all that belongs to it."""
    calls = draw(st.lists(st.builds(m.Call, **fields_of(m.Call)), min_size=1, max_size=FEW).map(tuple))
    message = draw(st.builds(m.Evaluate, **fields_of(m.Evaluate) | {"calls": st.just(calls)}))
    parts: Parts = {}
    for index in range(len(calls)):
        x = draw(tensors(FLOATS, shape=draw(LATENT_SHAPES)))
        per_position = (x.shape[0], math.prod(x.shape[2:]), 1)
        timestep = draw(st.sampled_from((x.shape[:1], (x.shape[0], x.shape[2]), per_position)))
        parts |= {f"call.{index}.x": x, f"call.{index}.timestep": draw(tensors(("F32",), shape=timestep))}
    return Received(message=message, tensors=parts)


@st.composite
def prepares(draw: DrawFn) -> Received:
    """A Prepare for rank 0 (with tensors) or another rank (without)."""
    job = draw(samples() | evaluates())
    key = "sample" if isinstance(job.message, m.Sample) else "evaluate"
    parts = dict(job.tensors)
    if key == "evaluate":
        parts |= {f"upload.{'0' * 32}.{name}": draw(tensors()) for name in draw(st.sets(st.sampled_from(["a", "b"])))}
    specs = tuple(part.spec(name) for name, part in parts.items())
    fixed = {"specs": st.just(specs), "sample": st.none(), "evaluate": st.none()} | {key: st.just(job.message)}
    message = draw(st.builds(m.Prepare, **fields_of(m.Prepare) | fixed))
    return Received(message=message, tensors=parts if draw(st.booleans()) else {})


@st.composite
def answers(draw: DrawFn, cls: type, names: SearchStrategy[list[str]], dtypes: tuple[str, ...]) -> Received:
    """A message that carries latents of one shape back."""
    shape = draw(LATENT_SHAPES)
    parts = {name: draw(tensors(dtypes, shape=shape)) for name in draw(names)}
    return Received(message=draw(st.builds(cls, **fields_of(cls))), tensors=parts)


OUT_NAMES = st.integers(1, FEW).map(lambda count: [f"call.{index}.out" for index in range(count)])


def _is_legal(message: Any) -> bool:
    if isinstance(message, m.Failed):
        return message.request is None or message.job_id is None
    return not isinstance(message, m.RankHello) or message.rank < message.world_size


def _alone(cls: type) -> SearchStrategy[Received]:
    fields = fields_of(cls) | ({"rank": st.integers(0, 3)} if cls is m.RankHello else {})
    return st.builds(cls, **fields).filter(_is_legal).map(lambda message: Received(message=message))


WITH_TENSORS: dict[type, SearchStrategy[Received]] = {
    m.Sample: samples(),
    m.Evaluate: evaluates(),
    m.Prepare: prepares(),
    m.Preview: answers(m.Preview, st.just(["x0"]), ("BF16",)),
    m.Result: answers(m.Result, st.just(["latent", "x0"]), ("F32",)),
    m.Evaluated: answers(m.Evaluated, OUT_NAMES, FLOATS),
    m.Upload: st.builds(
        Received,
        message=st.builds(m.Upload, **fields_of(m.Upload)),
        tensors=st.dictionaries(TENSOR_NAMES, tensors(), min_size=1, max_size=FEW),
    ),
    m.Described: st.builds(
        Received,
        message=st.builds(m.Described, **fields_of(m.Described)),
        manifest=st.lists(st.builds(m.ManifestEntry, **fields_of(m.ManifestEntry)), max_size=FEW).map(tuple),
    ),
}


def whole(cls: type) -> SearchStrategy[Received]:
    """Any legal message of a class, with what travels beside it."""
    return WITH_TENSORS[cls] if cls in WITH_TENSORS else _alone(cls)
