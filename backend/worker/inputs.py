"""A job's model calls from the descriptions of its tensors, for the adapter to check before any rank enters a collective.

What a message may hold at all (names, dtypes, shapes that must fit together) ``wire.rules`` has checked by then; here it is about
what the ranks can do with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import BadRequest
from ..models.adapter import CallSpec
from ..wire.messages import Branch, Call, Evaluate, Sample
from ..wire.tensors import TensorSpec
from .network import CONCAT

Specs = Mapping[str, TensorSpec]
Uploads = Mapping[str, Specs]
"""Digest -> conditioning name -> description."""

_UPLOAD_TENSOR = re.compile(r"upload\.([0-9a-f]{32})\.(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidancePair:
    """The branches of a Sample, by index."""

    positive: int
    negative: int | None
    """None where guidance has no weight for it: at a scale of 1 the wire carries no negative branch."""

    @property
    def indices(self) -> list[int]:
        """The branches to compute, positive first."""
        return [self.positive] if self.negative is None else [self.positive, self.negative]


def guidance_pair(sample: Sample) -> GuidancePair:
    """Which branch is which.

    Raises:
        BadRequest: more than one of a kind; combined conditioning is computed call by call.
    """
    positives = [index for index, branch in enumerate(sample.branches) if branch.kind == "positive"]
    negatives = [index for index, branch in enumerate(sample.branches) if branch.kind == "negative"]
    if len(positives) != 1 or len(negatives) > 1:
        raise BadRequest(
            "Send one positive and at most one negative branch in a Sample, and anything else call by call: "
            f"got {len(positives)} and {len(negatives)}."
        )
    return GuidancePair(positive=positives[0], negative=negatives[0] if negatives else None)


def sample_calls(sample: Sample, specs: Specs) -> list[CallSpec]:
    """The model calls of one step of a Sample, one per branch.

    Raises:
        BadRequest: branches or conditioning that do not fit together.
    """
    x_shape = specs["noise"].shape
    calls = []
    for index in guidance_pair(sample).indices:
        prefix = f"branch.{index}."
        conditioning = {name.removeprefix(prefix): spec for name, spec in specs.items() if name.startswith(prefix)}
        calls.append(_branch_call(sample.branches[index], x_shape, conditioning))
    return calls


def _branch_call(branch: Branch, x_shape: tuple[int, ...], conditioning: Specs) -> CallSpec:
    shapes = _repeated(conditioning, x_shape[0])
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
    found: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in specs.items():
        match = _UPLOAD_TENSOR.fullmatch(name)
        if match:
            found.setdefault(match[1], {})[match[2]] = spec
    return found


def evaluate_calls(evaluate: Evaluate, specs: Specs, uploaded: Uploads) -> list[CallSpec]:
    """The model calls of an Evaluate. ``uploaded``: all conditioning of the trajectory by now.

    Raises:
        BadRequest: conditioning that was never uploaded, or that belongs into x.
    """
    return [_call(call, index, specs, uploaded) for index, call in enumerate(evaluate.calls)]


def _call(call: Call, index: int, specs: Specs, uploaded: Uploads) -> CallSpec:
    x_shape, timestep_shape = specs[f"call.{index}.x"].shape, specs[f"call.{index}.timestep"].shape
    if call.conditioning not in uploaded:
        raise BadRequest(f"Upload the conditioning of call {index} first: {call.conditioning} is not known here.")
    conditioning = uploaded[call.conditioning]
    if CONCAT in conditioning:
        raise BadRequest("Send x with its concatenated channels: they are not conditioning in an Evaluate.")
    return CallSpec(
        x_shape=x_shape,
        timestep_shape=timestep_shape,
        conditioning=_repeated(conditioning, x_shape[0]),
        options=call.options,
    )


def _repeated(conditioning: Specs, batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes after repeating to the batch."""
    for name, spec in conditioning.items():
        if not spec.shape or spec.shape[0] < 1:
            raise BadRequest(f"Send {name} with a batch dimension: its shape is {list(spec.shape)}.")
    return {name: (batch, *spec.shape[1:]) for name, spec in conditioning.items()}
