"""Evaluate turns: the loop runs in the client, the ranks keep what its calls have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..wire.messages import Evaluate
from ..wire.tensors import TensorSpec
from .inputs import Specs, uploads
from .network import BranchCall, GatedNetwork


@dataclass(slots=True, kw_only=True)
class Trajectory:
    """What lives from turn to turn, on every rank alike."""

    uploads: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Digest -> conditioning name -> tensor on this rank's device."""
    specs: dict[str, dict[str, TensorSpec]] = field(default_factory=dict)
    """The same by description, for the checks."""
    calls: int = 0
    """Model calls entered so far."""


class Trajectories:
    """The open Evaluate trajectories of this group, by job id."""

    def __init__(self) -> None:
        self._open: dict[str, Trajectory] = {}

    def forget(self, job_ids: Iterable[str]) -> None:
        """Drop what these trajectories hold. Ids that are not known are passed over: a trajectory may never have got here."""
        for job_id in job_ids:
            self._open.pop(job_id, None)

    def uploads_with(self, job_id: str, specs: Specs) -> dict[str, Specs]:
        """The trajectory's conditioning by description, once the uploads that came with this turn have arrived."""
        known = self._open.get(job_id)
        return {**(known.specs if known else {}), **uploads(specs)}

    def open(self, job_id: str) -> Trajectory:
        """The trajectory, new if need be."""
        return self._open.setdefault(job_id, Trajectory())


def keep_uploads(trajectory: Trajectory, specs: Specs, tensors: Mapping[str, Tensor]) -> None:
    """Keep the conditioning that came with this turn."""
    for digest, named in uploads(specs).items():
        trajectory.specs[digest] = dict(named)
        # Cloned: a view would keep the whole packed buffer of this turn alive for as long as the trajectory is open.
        trajectory.uploads[digest] = {name: tensors[f"upload.{digest}.{name}"].clone() for name in named}


def run_evaluate(
    evaluate: Evaluate, tensors: Mapping[str, Tensor], trajectory: Trajectory, network: GatedNetwork
) -> dict[str, Tensor]:
    """Make the turn's calls, in order or side by side; ``call.<index>.out`` in the dtype of x. Collective.

    Raises:
        JobCancelled, Draining: on every rank alike, between two calls.
    """
    calls = []
    for index, call in enumerate(evaluate.calls):
        x = tensors[f"call.{index}.x"]
        conditioning = network.prepare(trajectory.uploads[call.conditioning], x.shape[0])
        timestep = tensors[f"call.{index}.timestep"]
        # A turn may ask for one conditioning several times, for parts of a picture say: each has a past of its own.
        branch = call.conditioning, [other.conditioning for other in evaluate.calls[:index]].count(call.conditioning)
        calls.append(BranchCall(x=x, timestep=timestep, conditioning=conditioning, options=call.options, branch=branch))
    velocities = network.each(calls)
    return {
        f"call.{index}.out": velocity.to(call.x.dtype)
        for index, (call, velocity) in enumerate(zip(calls, velocities, strict=True))
    }
