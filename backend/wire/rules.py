"""What must hold within a whole message, beyond the schema of each field: which tensors belong to it, and which shapes
fit together. Looks at names, dtypes and shapes only, never at the bytes. Both ends ask: ``encode`` before it sends,
``decode`` before it hands over.

What a family, a plan or a daemon can do is not decided here: that is an answer with a code of its own
(``wrong_family``, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from . import limits
from .messages import (
    Described,
    Evaluate,
    Evaluated,
    Failed,
    Message,
    Prepare,
    Preview,
    RankHello,
    Repeat,
    Result,
    Sample,
    Store,
    Upload,
)
from .schema import SchemaError
from .tensors import TensorSpec, WireTensor, check_specs

Parts = Mapping[str, WireTensor] | Mapping[str, TensorSpec]
"""Name -> anything with a dtype and a shape: the tensors themselves, or only their description."""

FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""What goes into the network and comes out of it."""

_F32: Final = frozenset({"F32"})
_BF16: Final = frozenset({"BF16"})


def check(message: Message, tensors: Parts, *, has_manifest: bool) -> None:
    """Check a message whose fields are already known to be legal.

    Raises:
        SchemaError: a tensor is missing, not one of this message's, or of another dtype or shape than its part demands;
            or two fields contradict one another.
    """
    if has_manifest is not (type(message) is Described):
        raise SchemaError("a manifest belongs to Described, and to nothing else")
    _RULES.get(type(message), _no_tensors)(message, tensors)


def _no_tensors(message: Any, parts: Parts) -> None:
    _only(parts, ())


def _sample(message: Sample, parts: Parts) -> None:
    noise = _latent(parts, "noise", _F32)
    _sigmas(parts)
    if "latent" in parts and _latent(parts, "latent", _F32) != noise:
        raise SchemaError(f"{parts['latent'].shape} is not the shape of the noise, {noise}", "latent")
    if "mask" in parts:
        _mask(_need(parts, "mask", _F32), noise)
    _branches(message)
    _only(parts, ("noise", "sigmas", "latent", "mask"), tuple(f"branch.{i}." for i in range(len(message.branches))))


def _sigmas(parts: Parts) -> None:
    shape = _need(parts, "sigmas", _F32)
    if len(shape) != 1 or not 1 <= shape[0] <= limits.SIGMAS:
        raise SchemaError(f"{shape} is not a row of 1 to {limits.SIGMAS}", "sigmas")


def _mask(mask: tuple[int, ...], noise: tuple[int, ...]) -> None:
    trailing = noise[len(noise) - len(mask) :]
    if len(mask) > len(noise) or any(size not in (1, whole) for size, whole in zip(mask, trailing, strict=True)):
        raise SchemaError(f"{mask} cannot be broadcast to the noise, {noise}", "mask")


def _branches(message: Sample) -> None:
    kinds = [branch.kind for branch in message.branches]
    if "positive" not in kinds:
        raise SchemaError("no positive branch")
    is_guided = not math.isclose(message.cfg, 1.0)  # as ComfyUI decides it
    if is_guided is not ("negative" in kinds):
        raise SchemaError(
            f"a negative branch goes with a cfg other than 1; cfg is {message.cfg}, the branches are {', '.join(kinds)}"
        )


def _evaluate(message: Evaluate, parts: Parts) -> None:
    if not message.calls:
        raise SchemaError("no calls")
    _calls(len(message.calls), parts)


def _repeat(message: Repeat, parts: Parts) -> None:
    if parts:  # the ranks other than the first are sent none
        _calls(min(max(len(parts) // 2, 1), limits.BRANCHES), parts)


def _calls(count: int, parts: Parts) -> None:
    known = []
    for index in range(count):
        x, timestep = f"call.{index}.x", f"call.{index}.timestep"
        shape = _latent(parts, x, FLOATS)
        # As ComfyUI gives them: per picture, per frame, or per position of the latent.
        if _need(parts, timestep, _F32) not in (shape[:1], (shape[0], shape[2]), (shape[0], math.prod(shape[2:]), 1)):
            raise SchemaError(
                f"{parts[timestep].shape} is not one number for each of the batch of {shape[0]}, nor for each of its frames or positions",
                timestep,
            )
        known += [x, timestep]
    _only(parts, known)


def _evaluated(message: Evaluated, parts: Parts) -> None:
    names = [f"call.{index}.out" for index in range(min(max(len(parts), 1), limits.BRANCHES))]
    for name in names:
        _latent(parts, name, FLOATS)
    _only(parts, names)


def _upload(message: Upload, parts: Parts) -> None:
    if not parts:
        raise SchemaError("an Upload without tensors")


def _store(message: Store, parts: Parts) -> None:
    if "bytes" in parts:
        (size,) = _row(parts, "bytes", frozenset({"U8"}))
        if size > limits.STORE_PIECE_BYTES:
            raise SchemaError(f"a piece of {size} bytes, at most {limits.STORE_PIECE_BYTES} are taken", "bytes")
        if message.offset + size > message.size_bytes:
            raise SchemaError(f"{size} bytes at {message.offset} of a file of {message.size_bytes}", "bytes")
    _only(parts, ("bytes",))


def _row(parts: Parts, name: str, dtypes: frozenset[str]) -> tuple[int, ...]:
    shape = _need(parts, name, dtypes)
    if len(shape) != 1 or shape[0] < 1:
        raise SchemaError(f"{shape} is not a row", name)
    return shape


def _preview(message: Preview, parts: Parts) -> None:
    _latent(parts, "x0", _BF16)
    _only(parts, ("x0",))


def _result(message: Result, parts: Parts) -> None:
    if _latent(parts, "latent", _F32) != _latent(parts, "x0", _F32):
        raise SchemaError(f"{parts['x0'].shape} is not the shape of the latent, {parts['latent'].shape}", "x0")
    _only(parts, ("latent", "x0"))


def _prepare(message: Prepare, parts: Parts) -> None:
    check_specs(message.specs)
    specs = {spec.name: spec for spec in message.specs}
    for name, part in parts.items():
        if name not in specs or (part.dtype, part.shape) != (specs[name].dtype, specs[name].shape):
            raise SchemaError("not as the specs describe it", name)
    if message.sample is not None and message.evaluate is None:
        _sample(message.sample, specs)
    elif message.evaluate is not None and message.sample is None:
        _evaluate(message.evaluate, {name: spec for name, spec in specs.items() if not name.startswith("upload.")})
    else:
        raise SchemaError("exactly one of sample and evaluate must be there")


def _failed(message: Failed, parts: Parts) -> None:
    if message.request is not None and message.job_id is not None:
        raise SchemaError("both request and job_id are there")
    _only(parts, ())


def _rank_hello(message: RankHello, parts: Parts) -> None:
    if message.rank >= message.world_size:
        raise SchemaError(f"rank {message.rank} in a group of {message.world_size}")
    _only(parts, ())


def _need(parts: Parts, name: str, dtypes: frozenset[str]) -> tuple[int, ...]:
    """The shape of a tensor that must be there."""
    part = parts.get(name)
    if part is None:
        raise SchemaError("the tensor is missing", name)
    if part.dtype not in dtypes:
        raise SchemaError(f"{part.dtype} where {' or '.join(sorted(dtypes))} is expected", name)
    return part.shape


def _latent(parts: Parts, name: str, dtypes: frozenset[str]) -> tuple[int, ...]:
    """The shape [batch, channels, ...] of something that looks like a latent."""
    shape = _need(parts, name, dtypes)
    if len(shape) < limits.LATENT_DIMS or 0 in shape:
        raise SchemaError(f"{shape} is not batch, channels and at least one more size, none of them 0", name)
    return shape


def _only(parts: Parts, known: Collection[str], prefix: tuple[str, ...] = ()) -> None:
    """Nothing beside the known names and those that say something after one of the prefixes."""
    for name in parts:
        if name not in known and not (name.startswith(prefix) and name not in prefix):
            raise SchemaError("no tensor of this message", name)


_RULES: Final[dict[type, Callable[[Any, Parts], None]]] = {
    Sample: _sample,
    Upload: _upload,
    Store: _store,
    Evaluate: _evaluate,
    Evaluated: _evaluated,
    Preview: _preview,
    Result: _result,
    Prepare: _prepare,
    Repeat: _repeat,
    Failed: _failed,
    RankHello: _rank_hello,
}
