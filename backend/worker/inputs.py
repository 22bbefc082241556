"""A job's tensors checked from their descriptions alone: what every rank does, alike, before any of them enters a collective."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import BadRequest
from ..models.adapter import CallSpec
from ..wire.messages import Branch, Call, Evaluate, Sample
from ..wire.tensors import TensorSpec
from .network import CONCAT

Specs = Mapping[str, TensorSpec]
Uploads = Mapping[str, Specs]
"""Digest -> conditioning name -> description."""

_BRANCH_TENSOR = re.compile(r"branch\.(\d+)\.(.+)")
_CALL_TENSOR = re.compile(r"call\.(\d+)\.(x|timestep)")
_UPLOAD_TENSOR = re.compile(r"upload\.([0-9a-f]{32})\.(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidancePair:
    """Which branches of a Sample are computed."""

    positive: int
    negative: int | None
    """None when guidance does not need it: at a scale of 1 the negative branch has no weight."""

    @property
    def indices(self) -> list[int]:
        """The branches to compute, positive first."""
        return [self.positive] if self.negative is None else [self.positive, self.negative]


def guidance_pair(sample: Sample) -> GuidancePair:
    """The branches that count.

    Raises:
        BadRequest: there is not exactly one positive, and at most one negative; or guidance needs a negative that is not there.
    """
    positives = [index for index, branch in enumerate(sample.branches) if branch.kind == "positive"]
    negatives = [index for index, branch in enumerate(sample.branches) if branch.kind == "negative"]
    if len(positives) != 1 or len(negatives) > 1:
        raise BadRequest(
            "Send one positive and at most one negative branch in a Sample, anything else call by call: "
            f"got {len(positives)} and {len(negatives)}."
        )
    if math.isclose(sample.cfg, 1.0):
        return GuidancePair(positive=positives[0], negative=None)
    if not negatives:
        raise BadRequest(f"Connect a negative prompt, or set cfg to 1: guidance at {sample.cfg:g} needs one.")
    return GuidancePair(positive=positives[0], negative=negatives[0])


def sample_calls(sample: Sample, specs: Specs) -> list[CallSpec]:
    """The model calls of one step of a Sample, one per branch, for the adapter to check.

    Raises:
        BadRequest: a tensor is missing, of another type or shape than it must have, or has no place in a Sample.
    """
    noise = _require(specs, "noise", "F32")
    if len(noise.shape) != 4 or 0 in noise.shape:
        raise BadRequest(f"Send noise as [batch, channels, height, width]: got {list(noise.shape)}.")
    sigmas = _require(specs, "sigmas", "F32")
    if len(sigmas.shape) != 1 or sigmas.shape[0] < 1:
        raise BadRequest(f"Send sigmas as a list of at least one: got shape {list(sigmas.shape)}.")
    if "latent" in specs and _require(specs, "latent", "F32").shape != noise.shape:
        raise BadRequest(f"Send a latent of the noise's shape {list(noise.shape)}: got {list(specs['latent'].shape)}.")
    if "mask" in specs and not _broadcasts(_require(specs, "mask", "F32").shape, noise.shape):
        raise BadRequest(f"Send a mask that fits the noise {list(noise.shape)}: got {list(specs['mask'].shape)}.")
    by_branch = _grouped(specs, _BRANCH_TENSOR, known={"noise", "sigmas", "latent", "mask"})
    _check_indices(by_branch, len(sample.branches), "branch")
    pair = guidance_pair(sample)
    return [_branch_call(sample.branches[i], noise.shape, by_branch.get(str(i), {})) for i in pair.indices]


def _branch_call(branch: Branch, x_shape: tuple[int, ...], conditioning: Specs) -> CallSpec:
    shapes = {name: _repeated(name, spec.shape, x_shape[0]) for name, spec in conditioning.items()}
    concat = shapes.pop(CONCAT, None)
    if concat is not None:
        if len(concat) != len(x_shape) or concat[2:] != x_shape[2:]:
            raise BadRequest(
                f"Give concatenated channels the latent's size {list(x_shape[2:])}: got {list(concat[2:])}."
            )
        x_shape = (x_shape[0], x_shape[1] + concat[1], *x_shape[2:])
    return CallSpec(x_shape=x_shape, conditioning=shapes, options=branch.options)


def uploads(specs: Specs) -> dict[str, dict[str, TensorSpec]]:
    """The conditioning that travels with an Evaluate, by digest and name."""
    known = {name for name in specs if _CALL_TENSOR.fullmatch(name)}
    return _grouped(specs, _UPLOAD_TENSOR, known=known)


def evaluate_calls(evaluate: Evaluate, specs: Specs, uploaded: Uploads) -> list[CallSpec]:
    """The model calls of an Evaluate, for the adapter to check. ``uploaded``: all conditioning of the trajectory by now.

    Raises:
        BadRequest: a tensor is missing, of another type or shape than it must have, or has no place in an Evaluate.
    """
    sent = {name: spec for name, spec in specs.items() if not _UPLOAD_TENSOR.fullmatch(name)}
    _check_indices(_grouped(sent, _CALL_TENSOR, known=set()), len(evaluate.calls), "call")
    return [_call(call, index, sent, uploaded) for index, call in enumerate(evaluate.calls)]


def _call(call: Call, index: int, specs: Specs, uploaded: Uploads) -> CallSpec:
    x = _require(specs, f"call.{index}.x", "F32", "BF16", "F16")
    if len(x.shape) != 4 or 0 in x.shape:
        raise BadRequest(f"Send x as [batch, channels, height, width]: got {list(x.shape)}.")
    timestep = _require(specs, f"call.{index}.timestep", "F32")
    if timestep.shape != x.shape[:1]:
        raise BadRequest(f"Send one timestep for each of the {x.shape[0]} pictures: got shape {list(timestep.shape)}.")
    if call.conditioning not in uploaded:
        raise BadRequest(f"Upload the conditioning of call {index} first: {call.conditioning} is not known here.")
    conditioning = uploaded[call.conditioning]
    if CONCAT in conditioning:
        raise BadRequest("Send x with its concatenated channels: they are not conditioning in an Evaluate.")
    shapes = {name: _repeated(name, spec.shape, x.shape[0]) for name, spec in conditioning.items()}
    return CallSpec(x_shape=x.shape, conditioning=shapes, options=call.options)


def _require(specs: Specs, name: str, *dtypes: str) -> TensorSpec:
    if name not in specs:
        raise BadRequest(f"Send the tensor {name}: it is missing.")
    if specs[name].dtype not in dtypes:
        raise BadRequest(f"Send {name} as {' or '.join(dtypes)}: it is {specs[name].dtype}.")
    return specs[name]


def _grouped(specs: Specs, pattern: re.Pattern[str], *, known: Iterable[str]) -> dict[str, dict[str, TensorSpec]]:
    """Tensors by the two parts of their name. A name of another form is refused: no input is ever dropped silently."""
    groups: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in specs.items():
        if name in known:
            continue
        match = pattern.fullmatch(name)
        if match is None:
            raise BadRequest(f"Leave out the tensor {name}: it has no meaning here.")
        groups.setdefault(match[1], {})[match[2]] = spec
    return groups


def _check_indices(groups: Iterable[str], count: int, what: str) -> None:
    for index in groups:
        if not (len(index) <= 2 and int(index) < count and str(int(index)) == index):
            raise BadRequest(f"Send tensors for the {count} announced only: {what} {index[:20]} is none of them.")


def _repeated(name: str, shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    if not shape or shape[0] < 1:
        raise BadRequest(f"Send {name} with a batch dimension: its shape is {list(shape)}.")
    return (batch, *shape[1:])


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    padded = (1,) * (len(to) - len(shape)) + shape
    return len(padded) == len(to) and all(size in (1, whole) for size, whole in zip(padded, to, strict=True))
